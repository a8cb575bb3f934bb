"""`ensemblectl plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_operator.cli.output import Output, emit, figure, grid
from ensemble_operator.cli.planning import best_plans, plan_table
from ensemble_operator.cli.preparing import prepare

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ensemble_operator.planner.plan import Plan


_TRIES = 3


def show_plan(file: Path, profiles: Sequence[Path], *, measure: bool, output: Output) -> None:
    """Plan a manifest and print the plan.

    Args:
        file: The manifest.
        profiles: Files of ModelProfiles besides.
        measure: Try the best few plans live, and print the fastest.
        output: How.

    Raises:
        EnsembleError: Something is wrong or missing, or does not fit.
    """
    prepared = prepare(file, profiles)
    plans = best_plans(prepared.problem, _TRIES if measure else 1, anytime=True)
    if not measure:
        emit(output, plans[0].document(), lambda: plan_table(plans[0]))
        return
    from ensemble_operator.cli.trying import measured_rates

    tried = list(zip(plans, measured_rates(prepared, plans), strict=True))
    best, rate = max(tried, key=lambda pair: pair[1])
    document = best.document() | {
        "measuredRate": rate,
        "tried": [{"digest": p.digest, "rate": p.rate, "measuredRate": r} for p, r in tried],
    }
    emit(output, document, lambda: _trial(tried, best, rate))


def _trial(tried: Sequence[tuple[Plan, float]], best: Plan, rate: float) -> RenderableType:
    from rich.console import Group

    rows = [[plan.digest, figure(plan.rate), figure(measured)] for plan, measured in tried]
    columns = ["plan", "predicted rows/s", "measured rows/s"]
    return Group(grid("Plans tried", columns, rows), plan_table(best, rate))
