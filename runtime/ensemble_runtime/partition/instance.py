"""The scheduling problem as numbers: tasks with seconds on two devices, tensors between them, weights they hold.

Device 0 is the scarce one (a GPU, or the first of two sets of cores), device 1 the other. A tensor crosses to the other
device at most once; it takes the link's latency and its bytes' time, and does not wait for other tensors: those of
recurrent models are small. Bytes of the scarce device are its weights, each counted once, and the most that its tensors
and workspace take at once when tasks run in the graph's order. On a GPU weights of recurrent operators count twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ensemble_runtime.errors import ModelInvalidError

SCARCE, OTHER = 0, 1

Assignment = tuple[int, ...]
"""The device of each task."""


@dataclass(frozen=True, slots=True)
class Task:
    """An operator, or several that are scheduled as one."""

    name: str
    seconds: tuple[float | None, float | None]
    """On either device; None where it cannot run."""
    weights: tuple[str, ...] = ()
    workspace: int = 0
    """Bytes beside inputs, outputs and weights while it runs."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A tensor that passes between tasks, into the graph or out of it."""

    name: str
    bytes: int
    producer: int | None
    """Index of the task; None for an input of the graph."""
    consumers: tuple[int, ...]
    output: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between the devices."""

    latency: float
    """Seconds from the end of the producer to the start of the consumer for an empty tensor."""
    seconds_per_byte: float

    def seconds(self, size: int) -> float:
        """Seconds that a tensor of so many bytes takes to cross."""
        return self.latency + size * self.seconds_per_byte


@dataclass(frozen=True)
class Instance:
    """Tasks in a topological order, and all that their placement depends on."""

    tasks: tuple[Task, ...]
    flows: tuple[Flow, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    """Bytes by name."""
    links: tuple[Link, Link] = (Link(0.0, 0.0), Link(0.0, 0.0))
    """From device 0 to device 1, and back."""
    home: int | None = None
    """The device whose memory holds the graph's inputs and is to hold its outputs; None: both devices reach them."""
    twice: frozenset[str] = frozenset()
    """Weights that the scarce device holds twice."""

    def __post_init__(self) -> None:
        for flow in self.flows:
            if any(flow.producer is not None and consumer <= flow.producer for consumer in flow.consumers):
                raise ModelInvalidError(f"tensor '{flow.name}' is read before it is made; tasks must be in order")
        for task, seconds in zip(self.tasks, self.seconds, strict=True):
            if not any(math.isfinite(s) and s >= 0 for s in seconds):
                raise ModelInvalidError(f"'{task.name}' has no finite time on either device")

    @cached_property
    def seconds(self) -> tuple[tuple[float, float], ...]:
        """Of each task on either device; infinite where it cannot run."""
        return tuple(
            (math.inf if a is None else a, math.inf if b is None else b) for a, b in (t.seconds for t in self.tasks)
        )

    @cached_property
    def crossing(self) -> tuple[tuple[float, float], ...]:
        """Seconds of each flow from device 0 to 1, and from 1 to 0."""
        return tuple((self.links[0].seconds(f.bytes), self.links[1].seconds(f.bytes)) for f in self.flows)

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """Flows that each task reads."""
        found: list[list[int]] = [[] for _ in self.tasks]
        for i, flow in enumerate(self.flows):
            for task in flow.consumers:
                found[task].append(i)
        return tuple(map(tuple, found))

    @cached_property
    def writes(self) -> tuple[tuple[int, ...], ...]:
        """Flows that each task makes."""
        found: list[list[int]] = [[] for _ in self.tasks]
        for i, flow in enumerate(self.flows):
            if flow.producer is not None:
                found[flow.producer].append(i)
        return tuple(map(tuple, found))

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """Tasks that read what each task makes, each once."""
        return tuple(tuple(sorted({c for flow in flows for c in self.flows[flow].consumers})) for flows in self.writes)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Tasks that make what each task reads, each once."""
        producers = [[self.flows[flow].producer for flow in flows] for flows in self.reads]
        return tuple(tuple(sorted({p for p in found if p is not None})) for found in producers)

    @cached_property
    def descendants(self) -> npt.NDArray[np.float64]:
        """(tasks, tasks): 1 where the second cannot start before the first has ended."""
        n = len(self.tasks)
        found = np.zeros((n, n))
        for task in reversed(range(n)):
            after = list(self.successors[task])
            found[task] = found[after].max(axis=0, initial=0.0)
            found[task, after] = 1.0
        return found

    def able(self, task: int, device: int) -> bool:
        """Whether a task can run on a device."""
        return math.isfinite(self.seconds[task][device])

    def whole(self, device: int) -> Assignment | None:
        """Everything on one device; None where something cannot run there."""
        able = all(self.able(task, device) for task in range(len(self.tasks)))
        return (device,) * len(self.tasks) if able else None

    def scarce_bytes(self, device: Sequence[int]) -> int:
        """Bytes that an assignment takes on the scarce device, its fixed context left out."""
        return self.device_bytes(device, SCARCE)

    def device_bytes(self, device: Sequence[int], which: int) -> int:
        """Bytes that an assignment takes on a device: weights, and the most that tensors and workspace take at once."""
        if which not in device:
            return 0
        here = [place == which for place in device]
        held = {name for task, on in zip(self.tasks, here, strict=True) if on for name in task.weights}
        change = [0] * (len(self.tasks) + 1)
        for flow in self.flows:
            last = max((c for c in flow.consumers if here[c]), default=-1)
            if flow.producer is None:
                first = 0 if last >= 0 else -1
            else:
                first = flow.producer if last >= 0 or here[flow.producer] else -1
                last = max(last, flow.producer)
            if first < 0:
                continue
            if flow.output and self.home != 1 - which and flow.producer is not None and here[flow.producer]:
                last = len(self.tasks) - 1
            change[first] += flow.bytes
            change[last + 1] -= flow.bytes
        live = peak = 0
        for task, on, delta in zip(self.tasks, here, change, strict=False):
            live += delta
            peak = max(peak, live + task.workspace if on else live)
        again = held & self.twice if which == SCARCE else ()
        return sum(self.weights[name] for name in (*held, *again)) + peak
