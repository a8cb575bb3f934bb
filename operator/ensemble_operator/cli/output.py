"""Data goes to stdout, as a table for people or as JSON or YAML for programs; all else goes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

_WIDTH_OF_PIPES = 160


class Output(StrEnum):
    """How data is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def emit(output: Output, document: Any, render: Callable[[], RenderableType]) -> None:
    """Write data to stdout.

    Args:
        output: The form.
        document: The data as plain values; in YAML a list becomes one document an item.
        render: Makes the table; called only for it.
    """
    if output is Output.JSON:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif output is Output.YAML:
        import yaml

        documents = document if isinstance(document, list) else [document]
        yaml.safe_dump_all(documents, sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        _stdout().print(render())
    sys.stdout.flush()


def note(message: str) -> None:
    """Tell a person something, on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def progress(*, quiet: bool = False) -> Progress:
    """A bar on stderr that vanishes when its work is done; nothing if quiet, or where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> RenderableType:
    """A table under a title: words in the first `left` columns, figures in the others; no head without names."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return Group(Text(title, style="bold"), table)


def figure(value: float) -> str:
    """A figure of three digits or more, grouped by thousands: 0.0123, 4.57, 12,345."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _stdout() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_PIPES)
