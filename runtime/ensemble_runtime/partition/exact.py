"""The best schedule of a small graph, proven: what the search is held against.

Branch and bound over which task comes next and where. Two partial schedules that have done the same tasks, with those
that later tasks read from on the same devices, are compared time by time: one that is behind in nothing makes the other
superfluous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ensemble_runtime.partition.instance import Instance
from ensemble_runtime.partition.ordering import scheduled
from ensemble_runtime.partition.schedule import least_bytes, least_makespan
from ensemble_runtime.partition.timeline import Schedule

MAX_TASKS = 14
NODES = 400_000
_SOON = 20_000
"""Steps for planning; of six graphs of 6 to 14 groups all were proven with 5,000, which took 0.8 s more at most."""
CLOSE = 1 - 1 / 1.05
"""What is no more than 5 % above the best is good enough."""
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of device 0's time beside device 1's: each gives a bound."""
TOLERANCE = 1e-3
"""A schedule that cannot be beaten by more than this fraction counts as the best."""


@dataclass(frozen=True)
class Proof:
    """The best schedule that was found, and what none can be below."""

    schedule: Schedule
    bound: float
    """Seconds in the latency pattern, bytes in the memory pattern."""
    complete: bool
    """Whether the bound is reached to within the tolerance; otherwise the number of steps ran out."""


def prove_makespan(instance: Instance, *, nodes: int = NODES, tolerance: float = TOLERANCE) -> Proof | None:
    """The least makespan, to within a tolerance (the larger, the sooner); None for graphs that are too large."""
    if len(instance.tasks) > MAX_TASKS:
        return None
    start = least_makespan(instance)
    search = _Tree(instance, start.makespan, nodes, tolerance=tolerance)
    search.explore()
    best = Schedule(instance, *search.best) if search.best else start
    complete = search.nodes > 0
    return Proof(best, best.makespan * (1 - tolerance) if complete else search.root, complete)


def prove_bytes(instance: Instance, seconds: float, *, nodes: int = NODES, tolerance: float = 0.0) -> Proof | None:
    """The least bytes on the scarce device with a makespan of at most `seconds`; None for graphs that are too large.

    Args:
        instance: The problem.
        seconds: What a schedule may take.
        nodes: Steps.
        tolerance: What is smaller than the search's answer by no more than this fraction is not looked for.

    Raises:
        NoScheduleError: No schedule was found that is as quick.
    """
    if len(instance.tasks) > MAX_TASKS:
        return None
    best = least_bytes(instance, seconds)
    able = [[d for d in (0, 1) if instance.able(task, d)] for task in range(len(instance.tasks))]
    sized = sorted((instance.scarce_bytes(device), device) for device in product(*able))
    for size, device in sized:
        if size >= best.scarce_bytes * (1 - tolerance):
            return Proof(best, size, complete=True)
        search = _Tree(instance, seconds * (1 + 1e-12), nodes, device)
        if search.root > seconds:
            continue
        if (quick := scheduled(instance, device)).makespan <= seconds:
            return Proof(quick, size, complete=True)
        search.explore()
        nodes = search.nodes
        if search.best:
            return Proof(Schedule(instance, *search.best), size, complete=True)
        if nodes <= 0:
            return Proof(best, size, complete=False)
    return Proof(best, best.scarce_bytes, complete=True)


def fewest_bytes(instance: Instance, seconds: float) -> Schedule:
    """The memory pattern as it is planned: where a graph is small enough, what the search missed is looked for.

    Raises:
        NoScheduleError: No schedule was found that is as quick.
    """
    proof = prove_bytes(instance, seconds, nodes=_SOON, tolerance=CLOSE)
    return least_bytes(instance, seconds) if proof is None else proof.schedule


class _Tree:
    """Depth-first, the most promising child first."""

    def __init__(
        self, instance: Instance, below: float, nodes: int, device: Sequence[int] | None = None, tolerance: float = 0.0
    ) -> None:
        self._instance = instance
        self._below = below
        self.nodes = nodes
        n = len(instance.tasks)
        every = [tuple(d for d in (0, 1) if instance.able(t, d)) for t in range(n)]
        self._places = every if device is None else [(d,) for d in device]
        self._tolerance = tolerance
        self._tail = self._least_tails()
        self._rest = self._least_rest()
        self._needs = [sum(1 << p for p in instance.predecessors[t]) for t in range(n)]
        self._after = [sum(1 << s for s in instance.successors[t]) for t in range(n)]
        self._everything = (1 << n) - 1
        self._met: dict[tuple[int, int], list[tuple[float, ...]]] = {}
        self.best: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        way = max(min(tail[d] for d in places) for tail, places in zip(self._tail, self._places, strict=True))
        self.root = max(way, self._bound(0, 0.0, 0.0))

    def explore(self) -> None:
        """Look for schedules below the limit until there are none, or the number of steps is used up."""
        n = len(self._instance.tasks)
        self._visit(0, (0.0, 0.0), [0] * n, [0.0] * n, [], 0.0)

    def _visit(
        self, done: int, free: tuple[float, float], device: list[int], finish: list[float], order: list[int], end: float
    ) -> None:
        if done == self._everything:
            if end < self._below:
                self._below, self.best = end, (tuple(device), tuple(order))
            return
        self.nodes -= 1
        if self.nodes <= 0 or self._known(done, free, device, finish, end):
            return
        children = self._children(done, free, device, finish)
        # Each task that is ready has to go somewhere: where it is best bounds them all.
        least: dict[int, float] = {}
        for bound, task, _, _ in children:
            least[task] = min(bound, least.get(task, math.inf))
        floor = max(end, *least.values())
        for bound, task, d, start in sorted(children):
            if max(bound, floor) >= self._below * (1 - self._tolerance):
                break
            device[task], finish[task] = d, start + self._instance.seconds[task][d]
            order.append(task)
            then = (finish[task], free[1]) if d == 0 else (free[0], finish[task])
            self._visit(done | 1 << task, then, device, finish, order, max(end, self._out(task, d, finish[task])))
            order.pop()

    def _children(
        self, done: int, free: tuple[float, float], device: list[int], finish: list[float]
    ) -> list[tuple[float, int, int, float]]:
        found = []
        for task, needs in enumerate(self._needs):
            if done >> task & 1 or needs & ~done:
                continue
            for d in self._places[task]:
                start = max(free[d], self._arrival(task, d, device, finish))
                end = start + self._instance.seconds[task][d]
                then = (end, free[1]) if d == 0 else (free[0], end)
                bound = max(start + self._tail[task][d], self._bound(done | 1 << task, *then))
                found.append((bound, task, d, start))
        return found

    def _arrival(self, task: int, d: int, device: list[int], finish: list[float]) -> float:
        """When all that a task reads is on a device."""
        instance, latest = self._instance, 0.0
        for i in instance.reads[task]:
            producer = instance.flows[i].producer
            if producer is None:
                when = instance.crossing[i][1 - d] if instance.home == 1 - d else 0.0
            else:
                when = finish[producer] + (instance.crossing[i][1 - d] if device[producer] != d else 0.0)
            latest = max(latest, when)
        return latest

    def _out(self, task: int, d: int, end: float) -> float:
        """When a task's outputs are where the graph's are wanted."""
        if self._instance.home != 1 - d:
            return end
        flows = (i for i in self._instance.writes[task] if self._instance.flows[i].output)
        return end + max((self._instance.crossing[i][d] for i in flows), default=0.0)

    def _bound(self, done: int, *free: float) -> float:
        """No schedule that goes on from here ends sooner, however the rest is dealt to the devices, even in parts."""
        ends = [w * free[0] + (1 - w) * free[1] + rest[done] for w, rest in zip(WEIGHTS, self._rest, strict=True)]
        return max(*ends, *free)

    def _least_rest(self) -> list[list[float]]:
        """For each weight of the devices' times and each set of finished tasks, the least weighted time of the rest."""
        found = []
        for w in WEIGHTS:
            by_device = (w, 1 - w)
            rest = np.zeros(1)
            for task, places in enumerate(self._places):
                least = min(by_device[d] * self._instance.seconds[task][d] for d in places)
                rest = np.concatenate([rest + least, rest])
            found.append(rest.tolist())
        return found

    def _known(self, done: int, free: tuple[float, float], device: list[int], finish: list[float], end: float) -> bool:
        """Whether a partial schedule of the same tasks is ahead in everything; remembers this one otherwise."""
        live = [t for t in range(len(device)) if done >> t & 1 and self._after[t] & ~done]
        where = sum(device[t] << t for t in live)
        now = (*free, end, *(finish[t] for t in live))
        met = self._met.setdefault((done, where), [])
        if any(all(a <= b for a, b in zip(other, now, strict=True)) for other in met):
            return True
        met[:] = [other for other in met if not all(b <= a for a, b in zip(other, now, strict=True))]
        met.append(now)
        return False

    def _least_tails(self) -> list[tuple[float, float]]:
        """Seconds from the start of a task on either device to the end, all after it being where that is best."""
        instance = self._instance
        tail = [(math.inf, math.inf)] * len(instance.tasks)
        for task in reversed(range(len(tail))):
            both = []
            for d in (0, 1):
                longest = 0.0
                for i in instance.writes[task]:
                    cross = instance.crossing[i][d]
                    if instance.flows[i].output and instance.home == 1 - d:
                        longest = max(longest, cross)
                    for c in instance.flows[i].consumers:
                        ways = (tail[c][e] + (cross if e != d else 0.0) for e in self._places[c])
                        longest = max(longest, min(ways))
                both.append(longest + instance.seconds[task][d])
            tail[task] = both[0], both[1]
        return tail
