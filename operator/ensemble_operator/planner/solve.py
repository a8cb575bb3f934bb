"""The planner's way in: a problem becomes a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.baseline import baseline
from ensemble_operator.planner.exact import exact, relaxed_bound
from ensemble_operator.planner.instance import Instance, Matrix, build
from ensemble_operator.planner.pack import pack, worst_fit
from ensemble_operator.planner.place import settle
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.score import Scored, score
from ensemble_operator.planner.search import Budget, bounded_greedy, local_search, shake

EVALUATIONS = 2_000
GOOD_ENOUGH = 1e-3
"""The search ends when the rate is within this fraction of the bound."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the search stands: matrices evaluated of how many, the best rate and the bound in rows per second."""

    evaluated: int
    of: int
    rate: float
    bound: float


def make_plan(
    problem: Problem,
    *,
    seed: int = 0,
    evaluations: int = EVALUATIONS,
    exact_nodes: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Plan:
    """Find the best matrix for a problem; the same input gives the same plan, byte for byte.

    Args:
        problem: Devices, members with their profiles, and the objective.
        seed: Of the search's random choices.
        evaluations: Most matrices to evaluate.
        exact_nodes: Above 0, finish with the integer program over so many branch-and-bound nodes: small problems are
            then solved to the optimum, and the bound of any becomes tighter.
        stop: Asked often; once true, the best plan so far is returned (for a time limit or Ctrl-C).
        progress: Told after each descent.

    Returns:
        The plan.

    Raises:
        OutOfMemoryError: The members do not fit into the devices' memory; the message states the shortfall.
        ManifestError: A member has no profile on any of the devices.
    """
    return candidates(
        problem, 1, seed=seed, evaluations=evaluations, exact_nodes=exact_nodes, stop=stop, progress=progress
    )[0]


def candidates(
    problem: Problem,
    count: int,
    *,
    seed: int = 0,
    evaluations: int = EVALUATIONS,
    exact_nodes: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Plan]:
    """The best few different plans, best first, for measuring them live; arguments as in `make_plan`."""
    instance = build(problem)
    base = score(instance, baseline(instance, pack(instance)))
    bound = relaxed_bound(instance)
    budget = Budget(evaluations, stop)
    found = _search(instance, base, bound, budget, np.random.default_rng(seed), progress)
    if exact_nodes:
        proven = exact(instance, node_limit=exact_nodes)
        bound = min(bound, proven.bound)
        if proven.matrix is not None:
            found.append(score(instance, proven.matrix))
    settled = {s.matrix.tobytes(): s for s in (_settled(instance, s) for s in found)}
    best = sorted(settled.values(), key=lambda s: (-s.score, -s.slack, s.matrix.tobytes()))
    return [finish(instance, s, base.steady.rate, bound) for s in best[:count]]


def _search(
    instance: Instance,
    base: Scored,
    bound: float,
    budget: Budget,
    random: np.random.Generator,
    progress: Callable[[Progress], None],
) -> list[Scored]:
    """Descents from every start, then from shaken copies of the best; all their ends."""
    ends = [base]
    best = base
    for start in _starts(instance, base):
        greedy = bounded_greedy(instance, start, budget)
        end = local_search(instance, greedy, budget, random)
        ends += [greedy, end]
        best = end if end.beats(best) else best
        progress(Progress(budget.spent, budget.evaluations, best.steady.rate, bound))
        if best.steady.rate >= bound * (1 - GOOD_ENOUGH) and not instance.problem.running:
            return ends
    while budget.left() and best.steady.rate < bound * (1 - GOOD_ENOUGH):
        budget.spend()
        end = local_search(instance, shake(instance, best, random, 1 + int(random.integers(4))), budget, random)
        ends.append(end)
        best = end if end.beats(best) else best
        progress(Progress(budget.spent, budget.evaluations, best.steady.rate, bound))
    return ends


def _starts(instance: Instance, base: Scored) -> list[Matrix]:
    starts = [base.matrix]
    if instance.problem.running:
        kept = np.maximum(instance.running, 0)
        if instance.fits(kept):
            starts.insert(0, kept)
    for level in range(1, int(instance.options.max())):
        packed = worst_fit(instance, level=level)
        if packed is not None:
            starts.append(packed)
    return starts


def _settled(instance: Instance, found: Scored) -> Scored:
    settled = score(instance, settle(instance, found.matrix))
    return settled if settled.score >= found.score - 1e-12 else found


def finish(instance: Instance, best: Scored, baseline_rate: float, bound: float) -> Plan:
    """Put a scored matrix back into the problem's words."""
    problem, state = instance.problem, best.steady
    shares = np.zeros(instance.shape)
    rows = np.asarray(instance.device_order)[state.cell_device]
    columns = np.asarray(instance.member_order)[state.cell_member]
    shares[rows, columns] = state.busy
    return Plan(
        problem=problem,
        matrix=instance.batches(best.matrix),
        shares=tuple(tuple(float(f"{s:.9g}") for s in row) for row in shares.tolist()),
        rate=state.rate,
        bound=max(bound, state.rate),
        baseline_rate=baseline_rate,
        bottleneck=instance.devices[int(np.argmax(state.device_price))].name,
        bottleneck_member=problem.members[instance.member_order[int(np.argmax(state.member_price))]].name,
    )
