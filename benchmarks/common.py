"""What all benchmarks share: the command line, the machine's description, fair alternation, and the record in docs/."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RECORD = Path(__file__).parent.parent / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome: what was done, and a table of what came out."""

    method: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Effort:
    """How much time to spend."""

    seconds: float
    """Of each timed run."""
    rounds: int
    """Timed runs of each side; medians are reported."""


def main(benchmark: Callable[[Effort], Report], *, seconds: float = 8, rounds: int = 3) -> None:
    """Run a benchmark from the command line and print its report; `--record` also writes it into docs/benchmarks.md."""
    script = Path(sys.argv[0]).name
    module = sys.modules[benchmark.__module__]
    parser = argparse.ArgumentParser(description=module.__doc__)
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each timed run (default {seconds:g})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed runs of each side (default {rounds})")
    parser.add_argument("--record", action="store_true", help="write the report into docs/benchmarks.md")
    options = parser.parse_args()
    try:
        report = benchmark(Effort(options.seconds, options.rounds))
    except RuntimeError as error:
        sys.exit(f"{script}: {error}")
    text = render(f"python benchmarks/{script}", report)
    print(text)
    if options.record:
        RECORD.parent.mkdir(exist_ok=True)
        document = RECORD.read_text() if RECORD.exists() else "# Benchmarks\n"
        RECORD.write_text(replace_section(document, Path(script).stem, text))


def render(command: str, report: Report) -> str:
    """The report as markdown."""
    lines = [
        report.method,
        "",
        f"`{command}`, {datetime.date.today():%Y-%m-%d}, {machine()}.",
        "",
        f"| {' | '.join(report.header)} |",
        f"|{' --- |' * len(report.header)}",
        *(f"| {' | '.join(row)} |" for row in report.rows),
    ]
    return "\n".join(lines) + "\n"


def replace_section(document: str, title: str, text: str) -> str:
    """The document with the text of `## title` exchanged, or added at the end."""
    section = f"## {title}\n\n{text}"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(document):
        return pattern.sub(lambda found: section + ("\n" if found.end() < len(document) else ""), document)
    return f"{document.rstrip()}\n\n{section}"


def machine() -> str:
    """This machine and the versions that matter, in one line."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", info)
    processor = f"{name[1] if name else platform.machine()}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    there = (p for p in ("torch", "onnxruntime", "onnxruntime-gpu", "aiohttp", "numpy") if _installed(p))
    packages = ", ".join(f"{package} {version(package)}" for package in there)
    return f"{len(cores())} cores of {processor}, {memory:.0f} GiB, Python {platform.python_version()}, {packages}"


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


Rounds = list[float]
"""What one side measured, round by round."""


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Rounds]:
    """Measure all sides in turn, round by round, so that drift of the machine hits all alike."""
    found: dict[str, Rounds] = {side: [] for side in sides}
    for turn in range(rounds):
        for side, measure in sides.items():
            value = measure()
            found[side].append(value)
            progress(f"round {turn + 1} of {rounds}: {side} {value:.4g}")
    return found


def ratio(side: Rounds, other: Rounds) -> float:
    """The median of the rounds' own ratios: what slows the machine for a whole round cancels out."""
    return median(a / b for a, b in zip(side, other, strict=True))


def progress(message: str) -> None:
    """Tell a person that waits; standard output is for the report."""
    print(message, file=sys.stderr, flush=True)


def verdict(value: float, target: float, *, at_most: bool = False) -> str:
    """A target and whether it was met."""
    met = value <= target if at_most else value >= target
    return f"{'at most' if at_most else 'at least'} {target:g}: {'met' if met else 'missed'}"
