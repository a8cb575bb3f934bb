"""The planner's way in: a problem becomes a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.baseline import baseline
from ensemble_operator.planner.exact import exact, relaxed
from ensemble_operator.planner.instance import Instance, Ints, Matrix, build
from ensemble_operator.planner.mend import mend
from ensemble_operator.planner.nodes import restrict, widen, worthwhile
from ensemble_operator.planner.pack import pack, serve_the_rest, worst_fit
from ensemble_operator.planner.place import settle
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.scale import rounded
from ensemble_operator.planner.score import Scored, score
from ensemble_operator.planner.search import Budget, bounded_greedy, local_search, shake
from ensemble_runtime.errors import OutOfMemoryError

EVALUATIONS = 2_000
LARGE = 32
"""Above so many devices the search starts from the rounded relaxation, and mends that."""
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
    whole = build(problem)
    base = score(whole, baseline(whole, pack(whole)))
    bound = relaxed(whole).bound
    budget = Budget(evaluations, stop)
    devices, starts = _begin(whole)
    ends = _search(restrict(whole, devices), starts, bound, budget, np.random.default_rng(seed), progress)
    found = [base, *(_settled(whole, score(whole, widen(whole, devices, end.matrix))) for end in ends)]
    if exact_nodes:
        proven = exact(whole, node_limit=exact_nodes)
        bound = min(bound, proven.bound)
        if proven.matrix is not None:
            found.append(_settled(whole, score(whole, proven.matrix)))
    distinct = {end.matrix.tobytes(): end for end in found}.values()
    best = sorted(distinct, key=lambda s: (-s.score, -s.slack, s.matrix.tobytes()))
    return [finish(whole, end, base.steady.rate, bound) for end in best[:count]]


def _begin(whole: Instance) -> tuple[Ints, list[Matrix]]:
    """The devices that are worth crossing to, all of them where the members do not fit into those, and starts there."""
    devices = worthwhile(whole)
    instance = restrict(whole, devices)
    try:
        return devices, _starts(instance)
    except OutOfMemoryError:
        return np.arange(len(whole.type_of)), _starts(whole)


def _starts(instance: Instance) -> list[Matrix]:
    """Where to begin: what runs, the rounded relaxation where devices are many, and packings at every batch size."""
    starts = [baseline(instance, pack(instance))]
    if len(instance.type_of) > LARGE and (ideal := rounded(instance, relaxed(instance))) is not None:
        starts.insert(0, ideal)
    if instance.problem.running and (kept := _kept(instance)) is not None:
        starts.insert(0, kept)
    levels = range(1, int(instance.options.max()))
    return starts + [packed for level in levels if (packed := worst_fit(instance, level=level)) is not None]


def _kept(instance: Instance) -> Matrix | None:
    """What runs, less the devices that it does not fit any more, with a cell for each member that was lost."""
    matrix = np.maximum(instance.running, 0)
    matrix[instance.bytes_used(matrix) > instance.capacity[instance.type_of]] = 0
    return matrix if serve_the_rest(instance, matrix) else None


def _search(
    instance: Instance,
    starts: list[Matrix],
    bound: float,
    budget: Budget,
    random: np.random.Generator,
    progress: Callable[[Progress], None],
) -> list[Scored]:
    """Descents from every start, then from shaken copies of the best; all their ends."""
    ends: list[Scored] = []
    large = len(instance.type_of) > LARGE

    def best() -> Scored:
        return max(ends, key=lambda end: (end.score, end.slack))

    def enough(end: Scored) -> bool:
        return not instance.problem.running and end.steady.rate >= bound * (1 - GOOD_ENOUGH)

    def told(end: Scored) -> None:
        ends.append(end)
        progress(Progress(budget.spent, budget.evaluations, best().steady.rate, bound))

    for start in starts:
        if large:
            told(mend(instance, score(instance, start), budget, enough))
        else:
            ends.append(bounded_greedy(instance, start, budget))
            told(local_search(instance, ends[-1], budget, random))
        if enough(best()) or not budget.left():
            return ends
    while not large and budget.left() and not enough(best()):
        budget.spend()
        told(local_search(instance, shake(instance, best(), random, 1 + int(random.integers(4))), budget, random))
    return ends


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
