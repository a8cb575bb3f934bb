"""Plans for other goals than throughput: the least p99, the most goodput, the fewest devices.

The search looks through the queueing model; the figures that a plan prints come from the simulation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble_operator.api.objective import Goal
from ensemble_operator.planner.campaign import Progress, begin, campaign
from ensemble_operator.planner.exact import fewest
from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix
from ensemble_operator.planner.latency import quantile
from ensemble_operator.planner.nodes import restrict, widen
from ensemble_operator.planner.pipeline import pipeline
from ensemble_operator.planner.score import Scored, costs, prune, score
from ensemble_operator.planner.search import Budget, one_cell_changes
from ensemble_operator.planner.simulate import poisson
from ensemble_runtime.errors import EnsembleError, OutOfMemoryError

SIMULATED_REQUESTS = 8_000
_TUNED = 150
"""Matrices to judge by latency; each takes as long as some ten of a search by rate."""


@dataclass(frozen=True)
class Search:
    """What a search for any goal needs."""

    whole: Instance
    fine: Instance
    """The same with every batch size, those that only latency can want included."""
    bound: float
    budget: Budget
    random: np.random.Generator
    progress: Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A matrix and what it achieves."""

    instance: Instance
    end: Scored
    p99_seconds: float | None = None
    goodput: float | None = None
    fewest_devices: int | None = None


def responsive(search: Search) -> Answer:
    """Latency and Goodput: tune plans without the cells that are too slow for one request; the simulation chooses.

    Raises:
        EnsembleError: No matrix carries the rate, or keeps the p99 at any rate.
    """
    answers = [answer for cap in _caps(search) if (answer := _within(search, cap)) is not None]
    objective = search.whole.problem.objective
    if objective.goal is Goal.LATENCY:
        carrying = [a for a in answers if a.end.steady.rate > (objective.rate or 0.0)]
        if not carrying:
            raise EnsembleError(
                f"objective.rate: no plan carries {objective.rate:g} rows/s; the devices carry at most "
                f"{search.bound:.1f}. Lower the rate or add devices"
            )
        return min(carrying, key=lambda a: a.p99_seconds or 0.0)
    best = max(answers, key=lambda a: a.goodput or 0.0, default=None)
    if best is None or not best.goodput:
        quickest = _one_request(search.fine, objective.request_rows).min(axis=0).max()
        raise EnsembleError(
            f"objective.p99Ms: no plan was found that keeps {objective.p99_ms:g} ms at any rate; a request alone takes "
            f"{quickest * 1000:.1f} ms on the fastest devices. Allow more time, or add faster devices"
        )
    return best


def _caps(search: Search) -> list[float]:
    """Most seconds that a cell may take for a request alone, from lenient to strict."""
    objective = search.whole.problem.objective
    if objective.goal is Goal.LATENCY:
        quickest = float(_one_request(search.fine, objective.request_rows).min(axis=0).max())
        return [math.inf, 6 * quickest, 2 * quickest]
    limit = (objective.p99_ms or 0.0) / 1000
    return [limit, limit / 3]


def _within(search: Search, cap: float) -> Answer | None:
    """The best plan whose cells take no longer than `cap` for a request alone; None where there is none."""
    quick = _without_slow(search, cap)
    if quick is None:
        return None
    ends = _ends(quick, np.arange(len(quick.whole.type_of)), quick.budget.evaluations // 3)
    if not ends:
        return None
    objective, end = search.whole.problem.objective, _tuned(quick, ends)
    if objective.goal is Goal.LATENCY:
        return Answer(search.fine, end, p99_seconds=_simulated(search.fine, end, objective.rate or 0.0))
    limit = (objective.p99_ms or 0.0) / 1000
    goodput = _highest(lambda rate: _simulated(search.fine, end, rate) <= limit, end.steady.rate, steps=8)
    p99 = _simulated(search.fine, end, goodput) if goodput > 0 else None
    return Answer(search.fine, end, p99_seconds=p99, goodput=goodput)


def _one_request(fine: Instance, rows: int) -> Floats:
    """(T, M) seconds of a request alone, at the largest batch size; infinite where the type cannot run the member."""
    out = np.full(fine.options.shape, math.inf)
    for t, m in zip(*np.nonzero(fine.options), strict=True):
        n = int(fine.options[t, m])
        points = sorted(zip(fine.batch[t, m, :n].tolist(), fine.seconds[t, m, :n].tolist(), strict=True))
        sizes, each = np.array(points).T
        full, rest = divmod(rows, int(sizes[-1]))
        out[t, m] = full * sizes[-1] * each[-1] + (float(np.interp(rest, sizes, sizes * each)) if rest else 0.0)
    return out


def _without_slow(search: Search, cap: float) -> Search | None:
    """The search without the cells that take longer than `cap` for a request alone."""
    slow = _one_request(search.fine, search.whole.problem.objective.request_rows) > cap
    if (slow | (search.fine.options == 0)).all(axis=0).any():
        return None
    return dataclasses.replace(search, whole=_masked(search.whole, slow), fine=_masked(search.fine, slow))


def _masked(instance: Instance, out: npt.NDArray[np.bool_]) -> Instance:
    return dataclasses.replace(
        instance,
        options=np.where(out, 0, instance.options),
        seconds=np.where(out[..., None], math.inf, instance.seconds),
        memory=np.where(out[..., None], 2**62, instance.memory),
    )


def fewest_devices(search: Search) -> Answer:
    """The fewest devices that carry the rate, and keep the p99 where one is asked for.

    Raises:
        EnsembleError: Not even all devices do.
    """
    objective = search.whole.problem.objective
    rate, limit = objective.rate or 0.0, objective.p99_ms
    search = (_without_slow(search, limit / 1000) if limit is not None else None) or search
    whole = search.whole
    least: int | None = None
    tried: set[bytes] = set()
    for margin in (1.0, 1.01, 1.03, 1.06, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, math.inf):
        counts = fewest(whole, rate * margin) if margin < math.inf else whole.counts
        if counts is None or counts.tobytes() in tried:
            continue
        least = int(counts.sum()) if least is None else least
        tried.add(counts.tobytes())
        devices = _chosen(whole, counts)
        end = _carrying(search, devices)
        if end is None or end.steady.rate < rate:
            continue
        if limit is None:
            return Answer(whole, end, fewest_devices=least)
        p99 = _simulated(search.fine, end, rate)
        if p99 * 1000 <= limit:
            return Answer(search.fine, end, p99_seconds=p99, fewest_devices=least)
    within = f" within {limit:g} ms" if limit is not None else ""
    raise EnsembleError(
        f"objective: no plan on these devices carries {rate:g} rows/s{within}; their upper bound is "
        f"{search.bound:.1f} rows/s. Lower the rate{', allow more time' if limit is not None else ''} or add devices"
    )


def _carrying(search: Search, devices: Ints) -> Scored | None:
    """The best matrix on some of the devices; None where the members do not fit there."""
    ends = _ends(search, devices, search.budget.evaluations // 4)
    if ends and search.whole.problem.objective.p99_ms is not None:
        return _tuned(search, ends, devices)
    return prune(search.whole, max(ends, key=lambda s: s.steady.rate)) if ends else None


def _ends(search: Search, devices: Ints, evaluations: int) -> list[Scored]:
    """Matrices of a search by rate on some of the devices; none where the members do not fit there."""
    part = restrict(search.whole, devices)
    try:
        kept, starts = begin(part)
    except OutOfMemoryError:
        return []
    budget = Budget(max(evaluations, 50), search.budget.stop)
    ends = campaign(restrict(part, kept), starts, search.bound, budget, search.random, search.progress)
    return [score(search.whole, widen(search.whole, devices, widen(part, kept, end.matrix))) for end in ends]


def _chosen(instance: Instance, counts: Ints) -> Ints:
    """So many devices of each type, on few nodes."""
    left, free = counts.copy(), set(range(instance.nodes))
    chosen: list[int] = []
    while left.any():
        offers = {n: _offer(instance, n, left) for n in sorted(free)}
        node = max(offers, key=lambda n: (len(offers[n]), -n))
        free.remove(node)
        chosen += offers[node]
        left -= np.bincount(instance.type_of[offers[node]], minlength=len(left))
    return np.array(sorted(chosen))


def _offer(instance: Instance, node: int, left: Ints) -> list[int]:
    here = np.flatnonzero(instance.node_of == node)
    return [int(d) for t in range(len(left)) for d in here[instance.type_of[here] == t][: left[t]]]


def _tuned(search: Search, found: list[Scored], devices: Ints | None = None) -> Scored:
    """Descend by one-cell changes, every batch size allowed, from the best of what was found."""
    fine, whole = search.fine, search.whole
    judge = _judge(fine)
    likely = sorted(found, key=lambda s: -s.score)[:8]
    starts = [score(fine, fine.matrix(whole.batches(prune(whole, end).matrix))) for end in likely]
    at = max(starts, key=lambda s: judge(s, -math.inf))
    best = judge(at, -math.inf)
    left = min(_TUNED, search.budget.evaluations)
    improved = True
    while improved and left > 0 and not search.budget.stop():
        improved = False
        changes = [m for m in one_cell_changes(fine, at.matrix) if devices is None or not _strays(m, devices)]
        for i in search.random.permutation(len(changes)):
            if left <= 0 or search.budget.stop():
                break
            left -= 1
            trial = score(fine, changes[i])
            value = judge(trial, best)
            if value > best + 1e-6:
                at, best, improved = trial, value, True
                break
    return at


def _strays(matrix: Matrix, devices: Ints) -> bool:
    outside = np.ones(len(matrix), bool)
    outside[devices] = False
    return bool(matrix[outside].any())


def _judge(instance: Instance) -> Callable[[Scored, float], float]:
    """A matrix's worth for the objective, in logarithms, higher is better; exact only where it beats `best`."""
    objective = instance.problem.objective
    rows, rate, limit = objective.request_rows, objective.rate, (objective.p99_ms or 0.0) / 1000

    def latency(end: Scored, best: float) -> float:
        assert rate is not None
        p99 = _modelled(instance, end, rate, rows)
        if math.isinf(p99):
            return -1e6 + math.log(end.steady.rate)
        return -math.log(p99) - costs(instance, end.matrix)

    def goodput(end: Scored, best: float) -> float:
        cost = costs(instance, end.matrix)
        floor = math.exp(best + cost) if best > -1e5 else 0.0
        if floor and (floor >= end.steady.rate or _modelled(instance, end, floor * 1.002, rows) > limit):
            return -math.inf
        most = _highest(lambda r: _modelled(instance, end, r, rows) <= limit, end.steady.rate, steps=9)
        quick = _modelled(instance, end, end.steady.rate * 0.001, rows) if most <= 0 else 0.0
        return math.log(most) - cost if most > 0 else -1e6 - quick

    return goodput if objective.goal is Goal.GOODPUT else latency


def _highest(good: Callable[[float], bool], top: float, *, steps: int) -> float:
    """The highest rate that is good, to within top / 2**steps; 0 where none is."""
    low, high = 0.0, top
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _modelled(instance: Instance, end: Scored, rate: float, rows: int) -> float:
    return quantile(pipeline(instance, end.matrix, end.steady), rate=rate, request_rows=rows)


def _simulated(instance: Instance, end: Scored, rate: float) -> float:
    drawn = pipeline(instance, end.matrix, end.steady)
    rows = instance.problem.objective.request_rows
    return poisson(drawn, rate=rate, request_rows=rows, requests=SIMULATED_REQUESTS).quantile(0.99)
