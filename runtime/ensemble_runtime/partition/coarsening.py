"""Fuses operators that never pay apart, so that what is scheduled, measured and run are few groups.

An operator that is quicker than a crossing and light in weights joins the only one that it feeds, or the only one that
feeds it. Neither can close a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

from ensemble_runtime.partition.instance import Flow, Instance, Task

LIGHT = 0.01
"""Share of all weights up to which an operator may be moved along with others."""

Groups = tuple[tuple[int, ...], ...]
"""Tasks of each group, in order; groups in an order that respects the graph."""


def coarse(instance: Instance, seconds: float) -> Groups:
    """Groups of tasks.

    Args:
        instance: The tasks; rough seconds will do.
        seconds: What is quicker on every device on which it runs is fused; the latency of the link is a good choice.
    """
    after = [set(found) for found in instance.successors]
    before = [set(found) for found in instance.predecessors]
    members: list[list[int]] = [[i] for i in range(len(after))]
    spent = [max(s for s in pair if math.isfinite(s)) for pair in instance.seconds]
    able = [tuple(map(math.isfinite, pair)) for pair in instance.seconds]
    light = LIGHT * sum(instance.weights.values())
    held = [{name: instance.weights[name] for name in task.weights} for task in instance.tasks]
    waiting = list(range(len(after)))
    while waiting:
        task = waiting.pop()
        if not members[task] or spent[task] > seconds or sum(held[task].values()) > light:
            continue
        others = [found for found in (after[task], before[task]) if len(found) == 1]
        hosts = [host for found in others for host in found if able[host] == able[task]]
        if not hosts:
            continue
        host = hosts[0]
        members[host] += members[task]
        members[task] = []
        spent[host] += spent[task]
        held[host] |= held[task]
        for other in after[task]:
            before[other] = (before[other] - {task}) | ({host} if other != host else set())
        for other in before[task]:
            after[other] = (after[other] - {task}) | ({host} if other != host else set())
        after[host] = (after[host] | after[task]) - {host, task}
        before[host] = (before[host] | before[task]) - {host, task}
        waiting += [host, *sorted(after[host]), *sorted(before[host])]
    return _ordered({i: tuple(sorted(m)) for i, m in enumerate(members) if m}, before, after)


def merged(instance: Instance, groups: Groups) -> Instance:
    """The instance with a task for each group: named after the slowest, seconds add up, shared weights stay shared."""
    group_of = {task: g for g, tasks in enumerate(groups) for task in tasks}
    tasks = tuple(_sum([instance.tasks[i] for i in group]) for group in groups)
    flows = []
    for flow in instance.flows:
        producer = None if flow.producer is None else group_of[flow.producer]
        consumers = tuple(sorted({group_of[c] for c in flow.consumers} - {producer}))
        if consumers or flow.output:
            flows.append(Flow(flow.name, flow.bytes, producer, consumers, flow.output))
    return replace(instance, tasks=tasks, flows=tuple(flows))


def _sum(tasks: Sequence[Task]) -> Task:
    def total(device: int) -> float | None:
        seconds = [task.seconds[device] for task in tasks]
        return None if None in seconds else sum(s for s in seconds if s is not None)

    return Task(
        name=max(tasks, key=_weight).name,
        seconds=(total(0), total(1)),
        weights=tuple(dict.fromkeys(name for task in tasks for name in task.weights)),
        workspace=max(task.workspace for task in tasks),
    )


def _weight(task: Task) -> float:
    return max(s for s in task.seconds if s is not None)


def _ordered(members: Mapping[int, tuple[int, ...]], before: Sequence[set[int]], after: Sequence[set[int]]) -> Groups:
    """Groups in an order that respects the graph, near to that of their first tasks."""
    waiting = {group: len(before[group]) for group in members}
    ready = [(tasks[0], group) for group, tasks in members.items() if not waiting[group]]
    heapify(ready)
    found = []
    while ready:
        _, group = heappop(ready)
        found.append(members[group])
        for other in after[group]:
            waiting[other] -= 1
            if not waiting[other]:
                heappush(ready, (members[other][0], other))
    return tuple(found)
