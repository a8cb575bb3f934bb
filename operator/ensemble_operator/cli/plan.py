"""`ensemblectl plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_operator.cli.explaining import explained, explained_table, write_page
from ensemble_operator.cli.output import Output, emit, figure, grid
from ensemble_operator.cli.planning import best_plans
from ensemble_operator.cli.preparing import Prepared, prepare
from ensemble_operator.planner.explain import what_if

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ensemble_operator.planner.plan import Plan


_TRIES = 3


def show_plan(
    file: Path,
    profiles: Sequence[Path],
    *,
    measure: bool,
    seconds: float,
    change: Mapping[str, int],
    page: Path | None,
    output: Output,
) -> None:
    """Plan a manifest, and print the plan with its reasons.

    Args:
        file: The manifest.
        profiles: Files of ModelProfiles besides.
        measure: Try the best few plans live, and print the fastest.
        seconds: How long to search at the most.
        change: Devices to add to those that are there, or to take away, by type.
        page: Where to write an HTML page besides.
        output: How.

    Raises:
        EnsembleError: Something is wrong or missing, or does not fit.
    """
    prepared = prepare(file, profiles)
    problem = what_if(prepared.problem, change) if change else prepared.problem
    plans = best_plans(problem, _TRIES if measure else 1, anytime=True, seconds=seconds)
    best = _tried(prepared, plans, output) if measure else plans[0]
    if page is not None:
        write_page(best, page)
    if not measure:
        emit(output, explained(best), lambda: explained_table(best))


def _tried(prepared: Prepared, plans: Sequence[Plan], output: Output) -> Plan:
    """Try plans live, print how they did, and give the fastest."""
    from ensemble_operator.cli.trying import measured_rates

    tried = list(zip(plans, measured_rates(prepared, plans), strict=True))
    best, rate = max(tried, key=lambda pair: pair[1])
    document = explained(best) | {
        "measuredRate": rate,
        "tried": [{"digest": p.digest, "rate": p.rate, "measuredRate": r} for p, r in tried],
    }
    emit(output, document, lambda: _trial(tried, best, rate))
    return best


def _trial(tried: Sequence[tuple[Plan, float]], best: Plan, rate: float) -> RenderableType:
    from rich.console import Group

    rows = [[plan.digest, figure(plan.rate), figure(measured)] for plan, measured in tried]
    columns = ["plan", "predicted rows/s", "measured rows/s"]
    return Group(grid("Plans tried", columns, rows), explained_table(best, rate))
