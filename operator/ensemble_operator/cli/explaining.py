"""Plans with their reasons: as tables, as plain data, and as an HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.errors import DataError
from ensemble_operator.cli.output import figure, grid, note, progress
from ensemble_operator.cli.planning import plan_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ensemble_operator.planner.explain import Explanation, OneMore
    from ensemble_operator.planner.plan import Plan

_MOST_LINES = 24
_MOST_DEVICES = 64
"""Up to so many devices, planning again with one more of each type takes seconds."""


def explained(plan: Plan) -> dict[str, Any]:
    """The plan and its reasons as plain data; times are shares, rates rows per second."""
    from pydantic.alias_generators import to_camel

    from ensemble_operator.planner.explain import explain

    reasons = explain(plan)
    return plan.document() | {
        "explanation": {
            "bottleneck": reasons.bottleneck,
            **{
                name: [{to_camel(key): value for key, value in dataclasses.asdict(item).items()} for item in items]
                for name, items in (("devices", reasons.devices), ("cells", reasons.cells))
            },
        }
    }


def explained_table(plan: Plan, measured: float | None = None) -> RenderableType:
    """The plan, what each device is used for, why each worker is where it is, and what one more device would bring."""
    from rich.console import Group

    from ensemble_operator.planner.explain import explain

    reasons = explain(plan)
    return Group(plan_table(plan, measured), "", *_reasons(reasons), *_more(_one_more(plan)))


def write_page(plan: Plan, file: Path) -> None:
    """Write one HTML page with all of that, and the throughput against the number of devices.

    Raises:
        DataError: The file cannot be written.
    """
    from ensemble_operator.planner.explain import curve, explain, one_more
    from ensemble_operator.planner.render import html

    with progress() as bar:
        bar.add_task("explaining", total=None, detail="planning again with more and with fewer devices")
        page = html(plan, explain(plan), one_more(plan), curve(plan.problem))
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    note(f"wrote {file}")


def _reasons(reasons: Explanation) -> Iterator[RenderableType]:
    devices = [
        [d.name, d.type, f"{d.time:.0%}", f"{d.memory_mib:,} of {d.of_mib:,}"] for d in reasons.devices[:_MOST_LINES]
    ]
    yield grid("Devices", ["device", "type", "busy", "MiB"], devices, left=2)
    yield from _rest(len(reasons.devices), "devices")
    cells = [[c.device, c.member, c.reason, str(c.batch_size), figure(c.rate)] for c in reasons.cells[:_MOST_LINES]]
    yield grid("Why", ["device", "member", "reason", "batch size", "rows/s"], cells, left=3)
    yield from _rest(len(reasons.cells), "workers")


def _rest(count: int, what: str) -> Iterator[str]:
    if count > _MOST_LINES:
        yield f"and {count - _MOST_LINES} more {what}; -o json gives them all\n"


def _one_more(plan: Plan) -> Sequence[OneMore]:
    from ensemble_operator.planner.explain import one_more

    if len(plan.problem.devices) > _MOST_DEVICES:
        return ()
    with progress() as bar:
        bar.add_task("explaining", total=None, detail="planning again with one more device")
        return one_more(plan)


def _more(outcomes: Sequence[OneMore]) -> Iterator[str]:
    for more in outcomes:
        yield f"one more {more.type}: {figure(more.rate)} rows/s, {more.gain - 1:+.1%}"
    if not outcomes:
        yield "one more device: ask with --what-if devices=+1xTYPE"
