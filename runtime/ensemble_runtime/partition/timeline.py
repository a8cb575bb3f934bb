"""When everything happens, for a given device of each task and a given order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ensemble_runtime.partition.instance import OTHER, Assignment, Instance


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor on its way to the other device."""

    flow: int
    source: int
    start: float
    finish: float


@dataclass(frozen=True)
class Schedule:
    """A device and a time for each task; every device runs its tasks in the order of their starts."""

    instance: Instance
    device: Assignment
    sequence: tuple[int, ...]
    """All tasks in an order that respects the graph; its restriction to a device is that device's order."""

    @cached_property
    def starts(self) -> tuple[float, ...]:
        """Seconds from the beginning, by task."""
        return tuple(times(self.instance, self.device, self.sequence)[0])

    @cached_property
    def makespan(self) -> float:
        """Seconds until every output is there."""
        return times(self.instance, self.device, self.sequence)[1]

    @cached_property
    def scarce_bytes(self) -> int:
        """Bytes on the scarce device."""
        return self.instance.scarce_bytes(self.device)

    @cached_property
    def other_bytes(self) -> int:
        """Bytes on the other device."""
        return self.instance.device_bytes(self.device, OTHER)

    def finish(self, task: int) -> float:
        """When a task ends."""
        return self.starts[task] + self.instance.seconds[task][self.device[task]]

    def order(self, device: int) -> tuple[int, ...]:
        """Tasks of a device in the order in which it runs them."""
        return tuple(task for task in self.sequence if self.device[task] == device)

    def busy(self, device: int) -> float:
        """Seconds that a device computes."""
        return sum(self.instance.seconds[task][device] for task in self.order(device))

    def transfers(self) -> tuple[Transfer, ...]:
        """Every tensor that crosses, by time."""
        found = []
        home = self.instance.home
        for i, flow in enumerate(self.instance.flows):
            if flow.producer is None and home is None:
                continue
            source = home if flow.producer is None else self.device[flow.producer]
            assert source is not None
            wanted = any(self.device[c] != source for c in flow.consumers)
            if wanted or (flow.output and home is not None and home != source):
                start = 0.0 if flow.producer is None else self.finish(flow.producer)
                found.append(Transfer(i, source, start, start + self.instance.crossing[i][source]))
        return tuple(sorted(found, key=lambda t: (t.start, t.flow)))


def times(instance: Instance, device: Sequence[int], sequence: Sequence[int]) -> tuple[list[float], float]:
    """When each task starts, and when the last output is there; a task starts as soon as it can in its turn."""
    seconds, crossing, reads, writes = instance.seconds, instance.crossing, instance.reads, instance.writes
    there = ([0.0] * len(crossing), [0.0] * len(crossing))
    if (home := instance.home) is not None:
        for i, flow in enumerate(instance.flows):
            if flow.producer is None:
                there[1 - home][i] = crossing[i][home]
    free = [0.0, 0.0]
    starts = [0.0] * len(seconds)
    for task in sequence:
        d = device[task]
        start, mine, far = free[d], there[d], there[1 - d]
        for read in reads[task]:
            if mine[read] > start:
                start = mine[read]
        starts[task] = start
        free[d] = end = start + seconds[task][d]
        for written in writes[task]:
            mine[written], far[written] = end, end + crossing[written][d]
    finish = max(free)
    if home is not None:
        finish = max([finish, *(there[home][i] for i, flow in enumerate(instance.flows) if flow.output)])
    return starts, finish


def critical(schedule: Schedule) -> list[int]:
    """Tasks on the path that decides the makespan, last first: each waited for the next in the list."""
    instance, starts = schedule.instance, schedule.starts
    before: dict[int, int] = {}
    for d in (0, 1):
        order = schedule.order(d)
        before.update(zip(order[1:], order, strict=False))
    finish = [schedule.finish(task) for task in range(len(starts))]
    path = [max(range(len(starts)), key=lambda task: (finish[task], -task))] if starts else []
    while path:
        task = path[-1]
        waited, when = None, -math.inf
        if task in before and finish[before[task]] > when:
            waited, when = before[task], finish[before[task]]
        for i in instance.reads[task]:
            producer = instance.flows[i].producer
            if producer is None:
                continue
            source = schedule.device[producer]
            cross = instance.crossing[i][source] if source != schedule.device[task] else 0.0
            if finish[producer] + cross > when:
                waited, when = producer, finish[producer] + cross
        if waited is None or when < starts[task] - 1e-12:
            return path
        path.append(waited)
    return path
