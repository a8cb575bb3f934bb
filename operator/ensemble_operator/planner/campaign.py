"""A search from end to end: where to begin, which methods to use at which size, and when it is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.baseline import baseline
from ensemble_operator.planner.exact import relaxed
from ensemble_operator.planner.instance import Instance, Ints, Matrix
from ensemble_operator.planner.mend import mend
from ensemble_operator.planner.nodes import restrict, worthwhile
from ensemble_operator.planner.pack import pack, serve_the_rest, worst_fit
from ensemble_operator.planner.place import settle
from ensemble_operator.planner.scale import rounded
from ensemble_operator.planner.score import Scored, moves, score
from ensemble_operator.planner.search import Budget, bounded_greedy, local_search, shake
from ensemble_runtime.errors import OutOfMemoryError

LARGE = 32
"""Above so many devices a start is only mended: the neighbourhoods of the other searches are too large."""
GOOD_ENOUGH = 1e-3
"""The search ends when the rate is within this fraction of the bound."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the search stands: matrices evaluated of how many, the best rate and the bound in rows per second."""

    evaluated: int
    of: int
    rate: float
    bound: float


def begin(whole: Instance) -> tuple[Ints, list[Matrix]]:
    """The devices that are worth crossing to, all of them where the members do not fit into those, and starts there."""
    devices = worthwhile(whole)
    instance = restrict(whole, devices)
    try:
        return devices, _starts(instance)
    except OutOfMemoryError:
        return np.arange(len(whole.type_of)), _starts(whole)


def _starts(instance: Instance) -> list[Matrix]:
    """Where to begin: what runs, the rounded relaxation, and packings at every batch size."""
    starts = [baseline(instance, pack(instance))]
    if (ideal := rounded(instance, relaxed(instance))) is not None:
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


def campaign(
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
        still = not instance.problem.running or moves(instance, end.matrix) == 0
        return still and end.steady.rate >= bound * (1 - GOOD_ENOUGH)

    def told(end: Scored) -> None:
        ends.append(end)
        progress(Progress(budget.spent, budget.evaluations, best().steady.rate, bound))

    for start in starts:
        at = mend(instance, score(instance, start), budget, enough)
        if not large and not enough(at):
            ends.append(bounded_greedy(instance, at.matrix, budget))
            at = local_search(instance, ends[-1], budget, random)
        told(at)
        if enough(best()) or not budget.left():
            return ends
    while not large and budget.left() and not enough(best()):
        budget.spend()
        told(local_search(instance, shake(instance, best(), random, 1 + int(random.integers(4))), budget, random))
    return ends


def settled(instance: Instance, found: Scored) -> Scored:
    """The same rows on the devices where they cost the fewest nodes and moves."""
    settled = score(instance, settle(instance, found.matrix))
    return settled if settled.score >= found.score - 1e-12 else found
