"""`ensemblectl plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_operator.cli.explaining import explained, explained_table, write_page
from ensemble_operator.cli.output import Output, emit, figure, grid, note
from ensemble_operator.cli.planning import best_plans
from ensemble_operator.cli.preparing import Prepared, prepare
from ensemble_operator.planner.explain import what_if

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ensemble_operator.cli.trying import Trial
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
    """Plan a manifest, and print the plan with its reasons; one that was measured and kept counts before others.

    Args:
        file: The manifest.
        profiles: Files of ModelProfiles besides.
        measure: Try the best few plans live, print the fastest, and keep it for the next time.
        seconds: How long to search at the most.
        change: Devices to add to those that are there, or to take away, by type.
        page: Where to write an HTML page besides.
        output: How.

    Raises:
        EnsembleError: Something is wrong or missing, or does not fit.
    """
    prepared = prepare(file, profiles)
    if measure:
        shown = _tried(prepared, best_plans(prepared.problem, _TRIES, anytime=True, seconds=seconds), output)
    else:
        shown = _planned(prepared, change, seconds, output)
    if page is not None:
        write_page(shown, page)


def _planned(prepared: Prepared, change: Mapping[str, int], seconds: float, output: Output) -> Plan:
    """Print the plan that `up` would serve, or that of other devices."""
    from ensemble_operator.cli.measured_plans import kept

    found = None if change else kept(prepared)
    if found is not None:
        document = explained(found.plan) | {"measuredRate": found.rate}
        emit(output, document, lambda: explained_table(found.plan, found.rate))
        return found.plan
    problem = what_if(prepared.problem, change) if change else prepared.problem
    (best,) = best_plans(problem, anytime=True, seconds=seconds)
    emit(output, explained(best), lambda: explained_table(best))
    return best


def _tried(prepared: Prepared, plans: Sequence[Plan], output: Output) -> Plan:
    """Try plans live, print how they did, and keep the fastest."""
    from ensemble_operator.cli.measured_plans import Measured, keep
    from ensemble_operator.cli.trying import try_plans

    trials = try_plans(prepared, plans)
    best = max(trials, key=lambda trial: trial.rate)
    document = explained(best.plan) | {
        "measuredRate": best.rate,
        "tried": [
            {"digest": t.plan.digest, "rate": t.plan.rate, "measuredRate": t.rate}
            | ({"failure": t.failure} if t.failure else {})
            for t in trials
        ],
    }
    emit(output, document, lambda: _trials(trials, best))
    if keep(prepared, Measured(best.plan, best.rate)):
        note(
            f"kept: `ensemblectl up` serves plan {best.plan.digest} until manifest, models, profiles or devices change"
        )
    return best.plan


def _trials(trials: Sequence[Trial], best: Trial) -> RenderableType:
    from rich.console import Group

    rows = [[t.plan.digest, figure(t.plan.rate), "failed" if t.failure else figure(t.rate)] for t in trials]
    columns = ["plan", "predicted rows/s", "measured rows/s"]
    return Group(grid("Plans tried", columns, rows), explained_table(best.plan, best.rate))
