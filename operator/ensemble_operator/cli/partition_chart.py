"""The schedule of a partition as bars in a terminal: a line a device, one for what crosses."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#edc948", "#9c755f")


def colour(name: str) -> str:
    """The colour of a group: the same for all chunks of an operator."""
    return COLOURS[zlib.crc32(operator(name).encode()) % len(COLOURS)]


def operator(name: str) -> str:
    """The operator that a group is a chunk of."""
    return name.split("/")[0]


def gantt(found: Mapping[str, Any]) -> RenderableType:
    """Bars of both devices and of what crosses, over one axis of time."""
    from rich.console import Group
    from rich.text import Text

    end = max(found["choice"]["makespanMs"], 1e-9)
    names = [device["name"] for device in found["devices"]]
    left = max(len("crossing"), *map(len, names))
    lines = []
    for device, name in enumerate(names):
        bars = [bar for bar in found["bars"] if bar["device"] == device]
        busy = found["choice"]["busyMs"][device] / end
        lines.append(_line(f"{name:>{left}} ", bars, end).append(f" {busy:4.0%}"))
    crossing = [{"name": "", **transfer} for transfer in found["transfers"]]
    lines.append(_line(f"{'crossing':>{left}} ", crossing, end, plain=True).append(f" {len(crossing)}"))
    scale = f"{'0':<{WIDTH // 2}}{f'{end:.3g} ms':>{WIDTH - WIDTH // 2}}"
    lines.append(Text(f"{'':>{left}} {scale}", style="dim"))
    legend = Text(f"{'':>{left}} ")
    for name in dict.fromkeys(operator(bar["name"]) for bar in found["bars"] if _cells(bar, end) > 1):
        legend.append("■ ", style=colour(name)).append(f"{name}  ")
    return Group(*lines, legend)


def _cells(bar: Mapping[str, Any], end: float) -> float:
    return float(WIDTH * (bar["endMs"] - bar["startMs"]) / end)


def _line(head: str, bars: Sequence[Mapping[str, Any]], end: float, *, plain: bool = False) -> Any:
    """Each cell shows what takes most of its time; the first cell of a bar is a thinner block, so that bars part."""
    from rich.text import Text

    cells: list[tuple[float, str, bool]] = [(0.0, "", False)] * WIDTH
    for bar in bars:
        start, stop = WIDTH * bar["startMs"] / end, WIDTH * bar["endMs"] / end
        for cell in range(int(start), min(WIDTH, int(stop) + 1)):
            part = min(stop, cell + 1) - max(start, cell)
            if part > cells[cell][0]:
                style = "dim" if plain else colour(bar["name"])
                cells[cell] = (part, style, cell == int(start))
    line = Text(head)
    for part, style, first in cells:
        line.append(" " if part <= 0 else "▐" if first else "█", style=style)
    return line
