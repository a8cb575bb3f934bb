"""From a graph and two devices to who computes what, and in which order.

Recurrent operators are opened into chunks of several lengths, each is measured and scheduled, and the best by its
prediction is taken; the graph as it is, on either device, is always among them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ensemble_runtime.config import Device, DeviceKind, Partition, PartitionObjective
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.coarsening import Groups, coarse, merged
from ensemble_runtime.partition.costs import Seconds, instance, measured, measured_in_place
from ensemble_runtime.partition.exact import MAX_TASKS, Proof, fewest_bytes, prove_bytes, prove_makespan
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.halving import halved
from ensemble_runtime.partition.handover import links
from ensemble_runtime.partition.instance import OTHER, SCARCE, Instance
from ensemble_runtime.partition.opening import alternating, opened, openings, overlapping
from ensemble_runtime.partition.ordering import scheduled
from ensemble_runtime.partition.schedule import Front, NoScheduleError, curve, least_makespan
from ensemble_runtime.partition.simulation import SimulatedGpu
from ensemble_runtime.partition.timeline import Schedule
from ensemble_runtime.partition.varying import refuse_varying

log = logging.getLogger(__name__)

LEAST_STEPS = 4
"""Shorter chunks spend more on their calls than they overlap."""

BLOCK = 6
"""ONNX Runtime multiplies the inputs of all steps of a chunk at once, in blocks of 6 (AVX2) or 12 (AVX-512) of them: a
layer of 256 units takes 16 us longer than twice 6 steps for twice 8."""

MARGIN = 0.05
"""Predictions err: two devices have to promise so much less time than one."""

LOWER = 3
"""So often less is aimed at than is permitted, where the fewest bytes turn out to take longer, or not to fit."""

LESS = 0.75
"""Of the bytes that a choice was counted with, where a device had no room for it."""


@dataclass(frozen=True)
class Opened:
    """A graph, opened in one way, as a scheduling problem."""

    graph: Graph
    steps: int | None
    """Time steps of a chunk; 0: opened by direction only; None: not opened, or by gates."""
    groups: Groups
    busy: Instance
    """A task for each group; seconds while both devices compute."""
    alone: Instance
    """The same; seconds while only one does."""
    shares: Seconds
    """Of each operator, as first measured: how the time of a call is shared."""
    by_gates: bool = False

    def placement(self, schedule: Schedule) -> Placement:
        """A schedule of this problem, operator by operator."""
        names = [operator.name for operator in self.graph.operators]
        order = [(names[i], schedule.device[task]) for task in schedule.sequence for i in self.groups[task]]
        return Placement(dict(order), tuple(name for name, _ in order))


@dataclass(frozen=True)
class Choice:
    """A schedule, and what it is a schedule of."""

    opened: Opened
    schedule: Schedule

    @property
    def placement(self) -> Placement:
        """What the executor wants to know, together with the opened graph."""
        return self.opened.placement(self.schedule)

    @property
    def split(self) -> bool:
        """Whether both devices compute."""
        return len(set(self.schedule.device)) > 1

    @property
    def beside(self) -> bool:
        """Whether the second device computes anything: then it has a process."""
        return any(self.schedule.device)


@dataclass(frozen=True)
class Planned:
    """What was found."""

    choice: Choice
    baselines: tuple[Choice | None, Choice | None]
    """Everything on one device, as it is; None where that is too small, or does not compute all of it."""
    curve: tuple[Choice, ...]
    """By rising makespan, falling bytes on the scarce device."""
    proof: Proof | None
    """The best schedule of the chosen opening, where it is small enough to tell."""
    simulated: bool


class Costs:
    """Two devices, and what graphs cost on them."""

    def __init__(
        self, devices: tuple[Device, Device], simulated: SimulatedGpu | None = None, booked: int | None = None
    ) -> None:
        """Measure the link.

        Args:
            devices: The scarce one first. With `simulated` only the second is there.
            simulated: What the first device would cost.
            booked: Bytes of the scarce device that nothing is to exceed; of a GPU no more than it has.

        Raises:
            DeviceUnavailableError: A device cannot be had.
        """
        self.devices = devices
        self.simulated = simulated
        own = devices[0].memory_bytes if devices[0].kind is DeviceKind.GPU else math.inf
        self.room = min(own, math.inf if booked is None else booked)
        """Bytes of the scarce device."""
        self.links = (simulated.link, simulated.link) if simulated else links(devices, self.room)
        # A GPU's inputs come from the host; with two sets of cores the caller's thread is the first one's.
        self._on_gpu = devices[0].kind is DeviceKind.GPU and not simulated
        self._home = OTHER if simulated or self._on_gpu else SCARCE

    def of(self, graph: Graph, steps: int | None) -> Opened:
        """Open a graph and measure it."""
        graph = graph if steps is None else opened(graph, overlapping(graph, steps))
        if self.simulated:
            # One measuring thread on the cores, none beside it: the simulated device needs no core.
            (here,) = measured(graph, (self.devices[1],))
            there = self.simulated.seconds(graph, here.alone)
            seconds = ((there, here.alone),) * 2
        else:
            first, second = measured(graph, self.devices, self.room)
            seconds = ((first.busy, second.busy), (first.alone, second.alone))
        busy, alone = (instance(graph, pair, self.links, self._home, on_gpu=self._on_gpu) for pair in seconds)
        groups = coarse(busy, max(link.latency for link in self.links))
        return Opened(graph, steps, groups, merged(busy, groups), merged(alone, groups), seconds[1][1])

    def by_gates(self, graph: Graph) -> Choice | None:
        """The graph with its large LSTMs by gates, each half on its device; None where there are none."""
        found = halved(graph) if self.cores else None
        if found is None:
            return None
        changed, placement = found
        seconds = measured_in_place(changed, placement, self.devices, {})
        tied = instance(changed, seconds, self.links, self._home, on_gpu=self._on_gpu)
        groups = coarse(tied, max(link.latency for link in self.links))
        busy = merged(tied, groups)
        device = tuple(int(not busy.able(task, SCARCE)) for task in range(len(groups)))
        way = Opened(changed, None, groups, busy, busy, {}, by_gates=True)
        return Choice(way, Schedule(busy, device, tuple(range(len(groups)))))

    def in_place(self, choice: Choice) -> Choice:
        """A choice with the seconds that its operators take where it puts them, beside each other."""
        if not (self.cores and choice.split) or choice.opened.by_gates:
            return choice
        way = choice.opened
        seconds = measured_in_place(way.graph, choice.placement, self.devices, way.shares)
        busy = merged(instance(way.graph, seconds, self.links, self._home, on_gpu=self._on_gpu), way.groups)
        return Choice(way, replace(choice.schedule, instance=busy))

    def fit(self, choice: Choice) -> bool:
        """Whether the scarce device has room for a choice."""
        return choice.schedule.scarce_bytes <= self.room

    def lower(self, choice: Choice) -> None:
        """Have less room from now on: what is counted is not all, and there was none for a choice."""
        self.room = int(LESS * choice.schedule.scarce_bytes)

    @property
    def cores(self) -> bool:
        """Whether both devices are sets of cores that are there."""
        return not self.simulated and all(device.kind is DeviceKind.CPU for device in self.devices)


def plan(graph: Graph, wanted: Partition, costs: Costs, *, chart: bool = True) -> Planned:
    """Measure a graph, and find the best placement: see `ways` and `chosen`."""
    return chosen(ways(graph, costs), wanted, costs, chart=chart)


def chosen(ways: Sequence[Opened], wanted: Partition, costs: Costs, *, chart: bool = True) -> Planned:
    """Find the best placement.

    Args:
        ways: Of the graph.
        wanted: The objective.
        costs: Of the two devices.
        chart: Also find the whole curve, and a proof where the graph is small.

    Raises:
        NoScheduleError: Nothing that was found is as quick as `latencyMs`, or fits.
        EnsembleError: The graph cannot be measured.
    """
    found = _candidates(ways, wanted, costs)
    best = _confirmed(found, wanted, costs)
    points = filter(costs.fit, _front(ways, found, best, wanted.objective)) if chart else (best,)
    proof = _proof(best, wanted) if chart else None
    alone = _alone(ways[0], SCARCE, costs), _alone(ways[0], OTHER, costs)
    return Planned(best, alone, tuple(points), proof, costs.simulated is not None)


def again(ways: Sequence[Opened], wanted: Partition, costs: Costs) -> Choice:
    """The best choice for a cell that has its place already: one comes up, even if it is slower than it was to be.

    Beside neighbours that compute everything takes longer than when it was measured for the plan.

    Args:
        ways: Of the graph.
        wanted: The objective.
        costs: Of the two devices; what takes more bytes than are booked there is chosen only where all does.

    Raises:
        EnsembleError: The graph cannot be measured.
    """
    try:
        return _confirmed(_candidates(ways, wanted, costs), wanted, costs)
    except NoScheduleError as error:
        why = str(error)
    found = [choice for way in ways for choice in _curve(way)]
    within = [choice for choice in found if costs.fit(choice)]
    best = min(within, key=_seconds_first) if within else min(found, key=_bytes_first)
    log.warning("%s; what takes %.3g ms serves", why, best.schedule.makespan * 1000)
    return best


def ways(graph: Graph, costs: Costs) -> list[Opened]:
    """Measure a graph as it is, and opened in the ways that can be computed.

    Raises:
        EnsembleError: The graph cannot be measured.
    """
    refuse_varying(graph)
    first, *others = ways_to_open(graph)
    found = [costs.of(graph, first)]
    for steps in others:
        try:
            found.append(costs.of(graph, steps))
        except ModelInvalidError as error:
            log.warning("not opened into chunks of %s time steps: %s", steps, error)
    return found


def _candidates(ways: Sequence[Opened], wanted: Partition, costs: Costs) -> list[Choice]:
    """By what was first measured, everything on either device and the best of each way of opening; all of it fits."""
    found = [choice for device in (SCARCE, OTHER) if (choice := _alone(ways[0], device, costs)) is not None]
    if wanted.objective is PartitionObjective.MEMORY:
        found += [choice for way in ways for choice in _smallest(way, _limit(wanted))]
        return [choice for choice in found if costs.fit(choice)]
    for way in ways:
        found += _quickest(way, costs)
        found += [Choice(way, schedule) for schedule in _alternating(way)] if costs.cores else []
    try:
        halves = costs.by_gates(ways[0].graph)
    except ModelInvalidError as error:
        log.warning("not opened by gates: %s", error)
        halves = None
    found += [] if halves is None else [halves]
    return [choice for choice in found if costs.fit(choice)]


def _quickest(way: Opened, costs: Costs) -> list[Choice]:
    """The quickest of a way of opening; where that does not fit, the quickest of the curve that does."""
    best = Choice(way, least_makespan(way.busy))
    return [best] if costs.fit(best) else sorted(filter(costs.fit, _curve(way)), key=_seconds_first)[:1]


def _curve(way: Opened) -> Iterator[Choice]:
    for schedule in curve(way.busy):
        yield Choice(way, schedule)


def _smallest(way: Opened, seconds: float) -> Iterator[Choice]:
    with suppress(NoScheduleError):
        yield Choice(way, fewest_bytes(way.busy, seconds))


def _limit(wanted: Partition) -> float:
    return math.inf if wanted.latency_ms is None else wanted.latency_ms / 1000


def _confirmed(found: list[Choice], wanted: Partition, costs: Costs) -> Choice:
    """The best choice by what it takes in place; only those are measured so that may be it.

    The fewest bytes fill the time that is permitted. Where they turn out to take longer, less is aimed at.
    """
    small = wanted.objective is PartitionObjective.MEMORY
    key, limit = _bytes_first if small else _seconds_first, _limit(wanted)
    best: Choice | None = None
    quickest = math.inf
    waiting = list(found)
    tries: Counter[int] = Counter()
    while waiting:
        waiting.sort(key=key)
        choice = waiting.pop(0)
        if best is not None and key(best) <= key(choice):
            break
        predicted, way = choice.schedule.makespan, choice.opened
        if predicted <= limit:
            try:
                choice = costs.in_place(choice)
            except ModelInvalidError as error:
                log.warning("a placement is left out: %s", error)
                continue
        taken = choice.schedule.makespan
        quickest = min(quickest, taken)
        if taken <= limit and (best is None or key(choice) < key(best)):
            best = choice
        if small and predicted <= limit < taken and tries[id(way)] < LOWER:
            tries[id(way)] += 1
            waiting += _smallest(way, limit * predicted / taken)
    if not found:
        raise NoScheduleError(f"no schedule takes as few as {costs.room} bytes of {costs.devices[SCARCE].name}")
    if best is None:
        raise NoScheduleError(
            f"the quickest schedule takes {quickest * 1000:.3g} ms, latencyMs permits {limit * 1000:.3g}"
        )
    return best


def _alternating(way: Opened) -> Iterator[Schedule]:
    """Layers in turn on either device, each with all its chunks, so that none is read by both."""
    placed = alternating(way.graph).device
    names = [operator.name for operator in way.graph.operators]
    heaviest = [max(group, key=lambda i: way.shares.get(names[i], 0.0)) for group in way.groups]
    device = tuple(placed[names[i]] for i in heaviest)
    if len(set(device)) > 1 and all(way.busy.able(task, d) for task, d in enumerate(device)):
        yield scheduled(way.busy, device)


def ways_to_open(graph: Graph) -> list[int | None]:
    """Chunk lengths that are worth trying, the graph as it is first."""
    steps = max(openings(graph).values(), default=0)
    if not steps or not overlapping(graph, max(1, steps // 2)):
        return [None]
    rough = (steps // parts for parts in (2, 4, 8, 16))
    lengths = [length - length % BLOCK if length > BLOCK else length for length in rough if length >= LEAST_STEPS]
    return [None, *(lengths or [0])]


def _alone(way: Opened, device: int, costs: Costs) -> Choice | None:
    """Everything on one device, if it fits there; timed as it is when nobody else computes."""
    assignment = way.alone.whole(device)
    if assignment is None:
        return None
    choice = Choice(way, Schedule(way.alone, assignment, tuple(range(len(assignment)))))
    return choice if costs.fit(choice) else None


def _seconds_first(choice: Choice) -> tuple[float, ...]:
    return choice.schedule.makespan * (1 + MARGIN * choice.split), choice.schedule.scarce_bytes


def _bytes_first(choice: Choice) -> tuple[float, ...]:
    return choice.schedule.scarce_bytes, choice.schedule.makespan


def _front(
    ways: Sequence[Opened], found: list[Choice], best: Choice, objective: PartitionObjective
) -> Iterator[Choice]:
    """What no other choice beats in both seconds and bytes."""
    front = Front()
    way_of: dict[int, Opened] = {}
    # What promised to be quicker than the quickest was measured in place, and is not.
    least = best.schedule.makespan if objective is PartitionObjective.LATENCY else 0.0
    for choice in (best, *found, *(choice for way in ways for choice in _curve(way))):
        if choice.schedule.makespan >= least:
            way_of[id(choice.schedule)] = choice.opened
            front.add(choice.schedule)
    for schedule in front.best:
        yield Choice(way_of[id(schedule)], schedule)


def _proof(choice: Choice, wanted: Partition) -> Proof | None:
    problem = choice.schedule.instance
    if len(problem.tasks) > MAX_TASKS:
        return None
    if wanted.objective is PartitionObjective.LATENCY:
        return prove_makespan(problem)
    with suppress(NoScheduleError):  # an order that search does not find keeps the time
        return prove_bytes(problem, _limit(wanted))
    return None
