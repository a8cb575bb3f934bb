"""In which order two devices run their tasks, once it is known which task is where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import numpy as np

from ensemble_runtime.partition.instance import Instance
from ensemble_runtime.partition.timeline import Schedule, times

SMALL = 16
"""Graphs of up to so many tasks are searched more thoroughly: orders are improved, pairs of tasks are moved."""


def orders(instance: Instance, device: Sequence[int]) -> Iterator[list[int]]:
    """Orders that respect the graph, by several rules, none of which is always the best."""
    here = np.asarray(device)
    seconds = np.array([pair[d] for pair, d in zip(instance.seconds, device, strict=True)])
    load = instance.descendants @ np.stack([seconds * (here == 0), seconds * (here == 1)], axis=1)
    tail = np.array(tails(instance, device))
    loaded = np.array(tails(instance, device, load.max(axis=1).tolist()))
    yield np.argsort(-tail, kind="stable").tolist()
    for urgency in (tail, tail - seconds, loaded - seconds):
        yield without_delay(instance, device, urgency.tolist())


def scheduled(instance: Instance, device: Sequence[int]) -> Schedule:
    """The best of several orders for a given device of each task; on small graphs improved by exchanges."""
    best = min(orders(instance, device), key=lambda order: times(instance, device, order)[1])
    if len(best) <= SMALL:
        best = _exchanged(instance, device, best)
    return Schedule(instance, tuple(device), tuple(best))


def _exchanged(instance: Instance, device: Sequence[int], order: list[int]) -> list[int]:
    """Have a task overtake others of its device, what it needs with it, where that helps most, as long as it helps."""
    span = times(instance, device, order)[1]
    best: list[int] | None = order
    while best is not None:
        order, best = best, None
        for behind in range(1, len(order)):
            for ahead in range(behind - 1, -1, -1):
                one, other = order[ahead], order[behind]
                if device[one] != device[other] or instance.descendants[one, other]:
                    continue
                changed = _overtaking(instance, order, ahead, behind)
                if (found := times(instance, device, changed)[1]) < span:
                    span, best = found, changed
    return order


def _overtaking(instance: Instance, order: Sequence[int], ahead: int, behind: int) -> list[int]:
    """The order with one task, and what it needs, before another."""
    task = order[behind]
    between = order[ahead:behind]
    needed = [other for other in between if instance.descendants[other, task]]
    rest = [other for other in between if not instance.descendants[other, task]]
    return [*order[:ahead], *needed, task, *rest, *order[behind + 1 :]]


def whole(instance: Instance, device: int) -> Schedule | None:
    """Everything on one device; None where something cannot run there."""
    assignment = instance.whole(device)
    return None if assignment is None else scheduled(instance, assignment)


def tails(instance: Instance, device: Sequence[int], load: Sequence[float] = ()) -> list[float]:
    """For each task, seconds that must pass from its start to the end of the graph, with every task on its device.

    With `load`, no less than so many seconds after its end.
    """
    tail = [0.0] * len(device)
    for task in range(len(device) - 1, -1, -1):
        d, longest = device[task], load[task] if load else 0.0
        for i in instance.writes[task]:
            flow, cross = instance.flows[i], instance.crossing[i][d]
            if flow.output and instance.home == 1 - d:
                longest = max(longest, cross)
            for consumer in flow.consumers:
                longest = max(longest, tail[consumer] + (cross if device[consumer] != d else 0.0))
        tail[task] = longest + instance.seconds[task][d]
    return tail


def without_delay(instance: Instance, device: Sequence[int], urgency: Sequence[float]) -> list[int]:
    """An order that respects the graph: what can start first comes first, then what is the most urgent."""
    waiting = [len(found) for found in instance.predecessors]
    arrival = [0.0] * len(waiting)
    if instance.home is not None:
        for i, flow in enumerate(instance.flows):
            for consumer in flow.consumers if flow.producer is None else ():
                if device[consumer] != instance.home:
                    arrival[consumer] = max(arrival[consumer], instance.crossing[i][instance.home])
    queues = (_Queue(), _Queue())
    for task, count in enumerate(waiting):
        if not count:
            queues[device[task]].put(arrival[task], -urgency[task], task)
    free = [0.0, 0.0]
    sequence: list[int] = []
    while choices := [first for d in (0, 1) if (first := queues[d].first(free[d])) is not None]:
        start, _, task = min(choices)
        d = device[task]
        queues[d].pop()
        sequence.append(task)
        free[d] = end = start + instance.seconds[task][d]
        for i in instance.writes[task]:
            far = end + instance.crossing[i][d]
            for consumer in instance.flows[i].consumers:
                when = end if device[consumer] == d else far
                if when > arrival[consumer]:
                    arrival[consumer] = when
        for consumer in instance.successors[task]:
            waiting[consumer] -= 1
            if not waiting[consumer]:
                queues[device[consumer]].put(arrival[consumer], -urgency[consumer], consumer)
    return sequence


class _Queue:
    """Tasks of a device whose predecessors are placed: inputs there, or on their way."""

    def __init__(self) -> None:
        self._there: list[tuple[float, int]] = []
        self._coming: list[tuple[float, float, int]] = []

    def put(self, arrival: float, haste: float, task: int) -> None:
        heappush(self._coming, (arrival, haste, task))

    def first(self, now: float) -> tuple[float, float, int] | None:
        """Start, haste and index of the task that a device, free from `now` on, would run next."""
        while self._coming and self._coming[0][0] <= now:
            _, haste, task = heappop(self._coming)
            heappush(self._there, (haste, task))
        if self._there:
            return now, *self._there[0]
        return self._coming[0] if self._coming else None

    def pop(self) -> None:
        """Take what `first` told of."""
        if self._there:
            heappop(self._there)
        else:
            heappop(self._coming)
