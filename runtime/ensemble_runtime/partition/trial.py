"""The plan proposes, a trial decides: proposals are run on the devices that they are for, and the quickest is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ensemble_runtime.members.model import Array, Model
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.opening import RECURRENT

_ROUNDS = 5
_SECONDS = 0.05
"""Of a model in a round, but one batch at least."""


@dataclass(frozen=True)
class Proposal:
    """A way to spread a model over two devices."""

    graph: Graph
    """Opened."""
    placement: Placement
    steps: int | None
    """Time steps of a chunk; 0: opened by direction only; None: not opened."""


def alternating(graph: Graph) -> Placement:
    """Every other recurrent layer on the second device, and what follows a layer on the device of that layer.

    All chunks of a layer, which share its weights, are on one device; directions and branches count as layers.
    """
    layers: dict[tuple[str, ...], int] = {}
    device: dict[str, int] = {}
    for operator in graph.operators:
        if operator.op_type in RECURRENT:
            device[operator.name] = layers.setdefault(operator.weights, len(layers)) % 2
        else:
            device[operator.name] = next((device[x] for x in graph.predecessors[operator.name]), 0)
    return Placement(device)


def on_trial(models: Sequence[Model], inputs: Sequence[Array]) -> list[float]:
    """Seconds of a batch of each model: the least of the medians of some rounds, in which all take turns."""
    for model in models:
        model.predict(inputs)
    rounds = [[_seconds(model, inputs) for model in models] for _ in range(_ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(model: Model, inputs: Sequence[Array]) -> float:
    found: list[float] = []
    until = time.perf_counter() + _SECONDS
    while not found or time.perf_counter() < until:
        started = time.perf_counter()
        model.predict(inputs)
        found.append(time.perf_counter() - started)
    return median(found)
