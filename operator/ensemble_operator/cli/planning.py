"""Plans with a progress bar, and shows plans as tables."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.output import figure, grid, note, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ensemble_operator.planner.campaign import Progress
    from ensemble_operator.planner.plan import Plan
    from ensemble_operator.planner.problem import Problem

_WIDEST = 12


def best_plans(problem: Problem, count: int = 1, *, anytime: bool = False, seconds: float = math.inf) -> list[Plan]:
    """The best few different plans, best first.

    Args:
        problem: The planner's question.
        count: How many at the most.
        anytime: Ctrl-C ends the search with the best so far, rather than everything.
        seconds: After so many the search ends with the best so far, too.

    Raises:
        OutOfMemoryError: The members do not fit into the devices.
    """
    from ensemble_operator.planner.solve import candidates

    until = time.monotonic() + seconds
    with progress() as bar, noting_interrupts() if anytime else nullcontext(_never) as interrupted:
        task = bar.add_task("planning", detail="")

        def tell(at: Progress) -> None:
            detail = f"{figure(at.rate)} rows/s, at most {figure(at.bound)} possible"
            bar.update(task, completed=at.evaluated, total=at.of, detail=detail)

        def stop() -> bool:
            return interrupted() or time.monotonic() >= until

        return candidates(problem, count, stop=stop, progress=tell)


def _never() -> bool:
    return False


@contextmanager
def noting_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the context, the first Ctrl-C is only noted; gives the question whether it came. The second interrupts."""
    came = False

    def note_it(*_: Any) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True
        note("stopping the search; the best plan so far counts")

    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def plan_table(plan: Plan, measured: float | None = None) -> RenderableType:
    """The allocation matrix, and what it promises.

    Args:
        plan: The plan.
        measured: Rows per second that it was seen to reach.
    """
    from rich.console import Group

    return Group(_picture(plan), "\n".join(f"{name + ':':<12} {value}" for name, value in _figures(plan, measured)))


def _figures(plan: Plan, measured: float | None) -> Iterator[tuple[str, str]]:
    yield "predicted", f"{figure(plan.rate)} rows/s, within {plan.gap:.1%} of the best possible"
    if measured is not None:
        yield "measured", f"{figure(measured)} rows/s, {measured / plan.rate:.0%} of the prediction"
    yield "baseline", f"{figure(plan.baseline_rate)} rows/s with the best batch sizes and one worker a member"
    yield "gain", f"{plan.gain:.2f}x"
    yield "bottleneck", f"device {plan.bottleneck}, member {plan.bottleneck_member}"
    if plan.p99_seconds is not None:
        yield "p99", f"{figure(plan.p99_seconds * 1000)} ms, predicted"
    if plan.goodput is not None:
        yield "goodput", f"{figure(plan.goodput)} rows/s, predicted"
    if plan.fewest_devices is not None:
        yield "fewest", f"no plan meets the rate with less than {plan.fewest_devices} devices"


def _picture(plan: Plan) -> RenderableType:
    """The matrix: a heat map on a terminal that is wide enough for it, figures elsewhere."""
    from rich.console import Console
    from rich.text import Text

    from ensemble_operator.planner.render import terminal

    heat = Text.from_markup(terminal(plan))
    widest = max(line.cell_len for line in heat.split())
    if sys.stdout.isatty() and widest <= Console().width:
        title = f"Batch sizes, on the colour of their share of time; device {plan.bottleneck} is the bottleneck\n\n"
        return Text.assemble((title, "bold"), heat, "\n")
    return _matrix(plan) if len(plan.problem.members) <= _WIDEST else _cells(plan)


def _matrix(plan: Plan) -> RenderableType:
    """Devices x members: batch size, and the share of the device's time."""
    names = [member.name for member in plan.problem.members]
    rows = [
        [
            device.name + (" *" if device.name == plan.bottleneck else ""),
            device.type,
            *(f"{batch} ({share:.0%})" if batch else "." for batch, share in zip(batches, shares, strict=True)),
        ]
        for device, batches, shares in zip(plan.problem.devices, plan.matrix, plan.shares, strict=True)
    ]
    return grid("Batch sizes (share of time); * bottleneck", ["device", "type", *names], rows, left=2)


def _cells(plan: Plan) -> RenderableType:
    """One line a worker, where the matrix would be too wide."""
    rows = [
        [device.name, device.type, member.name, str(batch), f"{share:.0%}"]
        for device, batches, shares in zip(plan.problem.devices, plan.matrix, plan.shares, strict=True)
        for member, batch, share in zip(plan.problem.members, batches, shares, strict=True)
        if batch
    ]
    return grid("Workers", ["device", "type", "member", "batch size", "share of time"], rows, left=3)
