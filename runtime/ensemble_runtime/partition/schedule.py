"""Which task runs on which device: the least makespan, or the least bytes on the scarce device within a latency.

List scheduling proposes; a local search improves, moving one task, all tasks that share weights, or a run of tasks on
the critical path at a time. All of it is deterministic, and its effort is bounded by a number of placed tasks, not by a
clock. Every schedule that is looked at goes into a front of makespan against bytes, which is the curve. The whole graph
on either device is always looked at: by this model, no answer is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from random import Random
from typing import TypeVar

from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.partition.instance import OTHER, SCARCE, Assignment, Instance
from ensemble_runtime.partition.listing import proposals
from ensemble_runtime.partition.ordering import SMALL, scheduled
from ensemble_runtime.partition.timeline import Schedule, critical

EFFORT = 120_000
"""Tasks that one search may place, over all the schedules that it looks at."""
KICKS = 40
CURVE_POINTS = 24

T = TypeVar("T")
Goal = Callable[[Schedule], tuple[float, ...]]


class NoScheduleError(OutOfMemoryError):
    """No schedule keeps the latency, or none exists."""


@dataclass
class Front:
    """Schedules that no other one beats in both makespan and bytes."""

    best: list[Schedule] = field(default_factory=list)
    """By rising makespan, falling bytes."""

    def add(self, schedule: Schedule) -> None:
        """Keep a schedule unless another is as good in both."""
        span, size = schedule.makespan, schedule.scarce_bytes
        if any(s.makespan <= span and s.scarce_bytes <= size for s in self.best):
            return
        self.best = [s for s in self.best if s.makespan < span or s.scarce_bytes < size]
        self.best.append(schedule)
        self.best.sort(key=lambda s: s.makespan)

    def within(self, seconds: float) -> Schedule | None:
        """The schedule of the least bytes whose makespan is no longer."""
        fitting = [s for s in self.best if s.makespan <= seconds]
        return fitting[-1] if fitting else None


def least_makespan(instance: Instance) -> Schedule:
    """The latency pattern.

    Raises:
        ModelInvalidError: The instance has no tasks.
    """
    return _Search(instance).least_makespan()


def least_bytes(instance: Instance, seconds: float) -> Schedule:
    """The memory pattern: the least bytes on the scarce device with a makespan of at most `seconds`.

    Raises:
        NoScheduleError: No schedule was found that is as quick.
    """
    search = _Search(instance)
    quickest = search.least_makespan()
    if quickest.makespan > seconds:
        raise NoScheduleError(
            f"the quickest schedule takes {quickest.makespan * 1000:.3g} ms, {seconds * 1000:.3g} ms are permitted"
        )
    search.walk()
    return search.least_bytes(seconds)


def curve(instance: Instance) -> tuple[Schedule, ...]:
    """The least bytes against the makespan, from the quickest schedule to the smallest."""
    search = _Search(instance)
    search.least_makespan()
    search.walk()
    marks = [s.makespan for s in search.front.best]
    for seconds in _thinned(marks, CURVE_POINTS):
        search.least_bytes(seconds, effort=EFFORT // CURVE_POINTS)
    return tuple(_thinned(search.front.best, 4 * CURVE_POINTS))


class _Search:
    """One instance's search; schedules of assignments that were seen are not made again."""

    def __init__(self, instance: Instance) -> None:
        if not instance.tasks:
            raise ModelInvalidError("cannot be partitioned: the graph has no operators")
        self._instance = instance
        self._seen: dict[Assignment, Schedule] = {}
        self._left = EFFORT
        self._bundles = list(_bundles(instance))
        self.front = Front()

    def least_makespan(self) -> Schedule:
        """Improve the best proposals."""
        starts = [self._at(a) for a in self._wholes()]
        starts += [self._at(a) for a in proposals(self._instance)]
        ranked = sorted({s.device: s for s in starts}.values(), key=_quick)[:3]
        self._left = EFFORT
        return min(
            (self._improved(s, _quick, self._left // (len(ranked) - i)) for i, s in enumerate(ranked)), key=_quick
        )

    def walk(self) -> None:
        """From the quickest schedule and from everything on one device, move one bundle after the other to the other.

        The bundle that goes first saves the most bytes for the makespan it adds. Where there are few placements, each
        of them is looked at.
        """
        self._left = EFFORT
        if 4 * len(self._instance.tasks) << len(self._instance.tasks) <= EFFORT // 2:
            for device in product(*self._able()):
                self._at(device)
            return
        starts = [self.front.best[0], *(self._at(a) for a in self._wholes())]
        for start in starts:
            self._walked(start, OTHER)
        if (away := self._instance.whole(OTHER)) is not None:
            self._walked(self._at(away), SCARCE)

    def least_bytes(self, seconds: float, effort: int = EFFORT) -> Schedule:
        """Improve what the front has within a makespan."""

        def small(schedule: Schedule) -> tuple[float, ...]:
            late = max(0.0, schedule.makespan - seconds)
            return late, schedule.scarce_bytes, schedule.makespan

        start = self.front.within(seconds)
        assert start is not None, "the quickest schedule is within any latency that is asked for"
        self._left = effort
        best = self._improved(start, small, effort)
        return min(best, self.front.within(seconds) or best, key=small)

    def _walked(self, schedule: Schedule, to: int) -> None:
        while self._left > 0:
            moved = [self._moved(schedule, bundle, to) for bundle in self._bundles]
            further = [s for s in moved if s is not None]
            if not further:
                return
            schedule = _cheapest(further, schedule, to)

    def _improved(self, schedule: Schedule, goal: Goal, effort: int) -> Schedule:
        """Climb; then, as long as the effort lasts, kick the best schedule out of its optimum and climb again."""
        stop = self._left - effort
        best = self._climbed(schedule, goal, stop)
        random = Random(0)
        for _ in range(KICKS):
            if self._left <= stop:
                break
            bundles = [random.choice(self._bundles) for _ in range(random.randint(1, 3))]
            kicked = self._flipped(best, [task for bundle in bundles for task in bundle if random.random() < 0.8])
            if kicked is not None:
                best = min(best, self._climbed(kicked, goal, stop), key=goal)
        return best

    def _climbed(self, schedule: Schedule, goal: Goal, stop: int) -> Schedule:
        """Take every move that helps until none does."""
        improved = True
        while improved and self._left > stop:
            improved = False
            for tasks in self._moves(schedule):
                other = self._flipped(schedule, tasks)
                if other is not None and goal(other) < goal(schedule):
                    schedule, improved = other, True
                if self._left <= stop:
                    break
        return schedule

    def _moves(self, schedule: Schedule) -> Iterator[Sequence[int]]:
        path = critical(schedule)
        yield from _runs(path, schedule.device)
        yield from ([task] for task in path)
        yield from self._bundles
        if len(schedule.device) <= SMALL:
            tasks = range(len(schedule.device))
            yield from ([task] for task in tasks)
            yield from combinations(tasks, 2)
        else:
            yield from ([task] for task in range(len(schedule.device)))

    def _flipped(self, schedule: Schedule, tasks: Iterable[int]) -> Schedule | None:
        device = list(schedule.device)
        for task in tasks:
            device[task] = 1 - device[task]
            if not self._instance.able(task, device[task]):
                return None
        return self._at(tuple(device))

    def _moved(self, schedule: Schedule, tasks: Iterable[int], to: int) -> Schedule | None:
        device = list(schedule.device)
        for task in tasks:
            if self._instance.able(task, to):
                device[task] = to
        return None if tuple(device) == schedule.device else self._at(tuple(device))

    def _at(self, device: Assignment) -> Schedule:
        if (known := self._seen.get(device)) is None:
            self._left -= 4 * len(device)
            known = self._seen[device] = scheduled(self._instance, device)
            self.front.add(known)
        return known

    def _able(self) -> list[list[int]]:
        return [[d for d in (SCARCE, OTHER) if self._instance.able(t, d)] for t in range(len(self._instance.tasks))]

    def _wholes(self) -> list[Assignment]:
        return [a for a in map(self._instance.whole, (SCARCE, OTHER)) if a is not None]


def _quick(schedule: Schedule) -> tuple[float, ...]:
    return schedule.makespan, schedule.scarce_bytes


def _cheapest(further: list[Schedule], now: Schedule, to: int) -> Schedule:
    """The step that costs least for what it brings."""
    return min(further, key=lambda schedule: _price(schedule, now, to))


def _price(schedule: Schedule, now: Schedule, to: int) -> tuple[float, float]:
    """What a step costs for what it brings: away from the scarce device seconds for bytes, to it bytes for seconds."""
    slower, larger = schedule.makespan - now.makespan, float(schedule.scarce_bytes - now.scarce_bytes)
    cost, gain = (slower, -larger) if to == OTHER else (larger, -slower)
    if gain <= 0:
        return math.inf, cost
    return (cost / gain if cost > 0 else cost * gain), -gain


def _bundles(instance: Instance) -> Iterator[list[int]]:
    """Tasks that share weights, together; the others one by one."""
    holders: dict[str, list[int]] = {}
    for i, task in enumerate(instance.tasks):
        for name in task.weights:
            holders.setdefault(name, []).append(i)
    parent = list(range(len(instance.tasks)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for tasks in holders.values():
        for other in tasks[1:]:
            parent[root(other)] = root(tasks[0])
    bundles: dict[int, list[int]] = {}
    for i in range(len(parent)):
        bundles.setdefault(root(i), []).append(i)
    yield from bundles.values()


def _runs(path: Sequence[int], device: Sequence[int]) -> Iterator[list[int]]:
    """A path cut where the device changes."""
    run: list[int] = []
    for task in path:
        if run and device[task] != device[run[-1]]:
            yield run
            run = []
        run.append(task)
    if run:
        yield run


def _thinned(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
