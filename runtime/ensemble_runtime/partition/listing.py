"""List scheduling: a device and a time for one task after the other, the most urgent first.

HEFT (Topcuoglu, Hariri and Wu, 2002) takes the device where the task ends first, also in a gap between others. PEFT
(Arabnejad and Barbosa, 2014) weighs as well what is left to do from there. Neither is always the better one.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from ensemble_runtime.partition.instance import Assignment, Instance

Pair = tuple[float, float]
Interval = tuple[float, float]


def proposals(instance: Instance) -> Iterator[Assignment]:
    """Assignments by both rules, once for each way of telling how urgent a task is."""
    ahead = _left_to_do(instance)
    blind = [(0.0, 0.0)] * len(ahead)
    weighings: tuple[Callable[[Pair], float], ...] = (_mean, min, max)
    for weigh in weighings:
        urgency = _urgency(instance, weigh)
        for look in (blind, ahead):
            yield _listed(instance, urgency, look)


def _mean(pair: Pair) -> float:
    finite = [x for x in pair if math.isfinite(x)]
    return sum(finite) / len(finite)


def _urgency(instance: Instance, weigh: Callable[[Pair], float]) -> list[float]:
    """The longest way from a task to the end, with every time weighed over both devices, half the crossings made."""
    urgency = [0.0] * len(instance.tasks)
    for task in reversed(range(len(urgency))):
        longest = 0.0
        for i in instance.writes[task]:
            cross = sum(instance.crossing[i]) / 4
            longest = max([longest, *(cross + urgency[c] for c in instance.flows[i].consumers)])
        own = weigh(instance.seconds[task])
        urgency[task] = longest + (own if math.isfinite(own) else _mean(instance.seconds[task]))
    return urgency


def _left_to_do(instance: Instance) -> list[Pair]:
    """Seconds from a task's end to the graph's, if it is on either device and all after it where that is best."""
    left: list[Pair] = [(0.0, 0.0)] * len(instance.tasks)
    for task in reversed(range(len(left))):
        both = []
        for d in (0, 1):
            longest = 0.0
            for i in instance.writes[task]:
                cross = instance.crossing[i][d]
                if instance.flows[i].output and instance.home == 1 - d:
                    longest = max(longest, cross)
                for c in instance.flows[i].consumers:
                    there = (left[c][e] + instance.seconds[c][e] + (cross if e != d else 0.0) for e in (0, 1))
                    longest = max(longest, min(there))
            both.append(longest)
        left[task] = both[0], both[1]
    return left


def _listed(instance: Instance, urgency: Sequence[float], ahead: Sequence[Pair]) -> Assignment:
    """Place one task after the other where its end, and what is ahead from there, come first."""
    busy: tuple[list[Interval], list[Interval]] = ([], [])
    there = [[0.0, 0.0] for _ in instance.flows]
    if (home := instance.home) is not None:
        for i, flow in enumerate(instance.flows):
            if flow.producer is None:
                there[i][1 - home] = instance.crossing[i][home]
    device = [0] * len(instance.tasks)
    for task in sorted(range(len(device)), key=lambda t: -urgency[t]):
        choices = []
        for d in (0, 1):
            if instance.able(task, d):
                seconds = instance.seconds[task][d]
                start = _gap(busy[d], max((there[i][d] for i in instance.reads[task]), default=0.0), seconds)
                choices.append((start + seconds + ahead[task][d], start + seconds, d))
        _, end, d = min(choices)
        device[task] = d
        insort(busy[d], (end - instance.seconds[task][d], end))
        for i in instance.writes[task]:
            there[i][d], there[i][1 - d] = end, end + instance.crossing[i][d]
    return tuple(device)


def _gap(busy: Sequence[Interval], earliest: float, seconds: float) -> float:
    """The first time from `earliest` on at which nothing runs for so long."""
    start = earliest
    for begin, end in busy[bisect_right(busy, earliest, key=itemgetter(1)) :]:  # nothing before is in the way
        if begin >= start + seconds:
            break
        start = max(start, end)
    return start
