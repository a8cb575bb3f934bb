"""The plan proposes, a trial decides: proposals are run on the devices that they are for, and the quickest is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import onnxruntime

from ensemble_runtime.config import Device
from ensemble_runtime.errors import EnsembleError
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.members.model import Array, Model
from ensemble_runtime.members.onnx_model import options, providers
from ensemble_runtime.partition.costs import random_inputs
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.places import Place
from ensemble_runtime.partition.together import joined, threads_on

_ROUNDS = 9
_SECONDS = 0.03
"""Of a model in a round, but one batch at least."""


@dataclass(frozen=True)
class Proposal:
    """A way to spread a model over two devices."""

    graph: Graph
    """Opened."""
    placement: Placement
    steps: int | None
    """Time steps of a chunk; 0: opened by direction only; None: not opened."""
    saves: bool = False
    """Whether the whole model would take more of the first device than there is."""


def on_trial(models: Sequence[Model], inputs: Sequence[Array]) -> list[float]:
    """Seconds of a batch of each model: the median of some rounds, in which all take turns.

    Not the least: devices that wait for each other have lucky rounds, and long chunks have luckier ones than short.

    Raises:
        ModelInvalidError: One of them fails; OutOfMemoryError for lack of memory.
    """
    with _failures():
        for model in models:
            model.predict(inputs)
        return _medians([partial(model.predict, inputs) for model in models])


def executed(graph: Graph, placement: Placement, devices: tuple[Device, Device]) -> float:
    """Seconds of a batch of a placed graph as it would be served, as `on_trial` has them.

    Raises:
        EnsembleError: As of `Executor`; ModelInvalidError also where ONNX Runtime fails at it.
    """
    given = random_inputs(graph)
    inputs = [given[name] for name in graph.inputs]
    place = Place(devices[0])
    try:
        executor = place.call(Executor, graph, placement, devices).result()
        try:
            with _failures():
                place.call(executor.compute, inputs).result()
                (seconds,) = place.call(_medians, [partial(executor.compute, inputs)]).result()
            return float(seconds)
        finally:
            executor.close()
    finally:
        place.close()


def threaded(graph: Graph, devices: tuple[Device, Device]) -> float:
    """The same of the whole graph on ONNX Runtime's own threads, on two sets of cores (see `together`)."""
    given = random_inputs(graph)
    model, both = graph.model.SerializeToString(), joined(devices)
    place = Place(devices[0])

    def opened() -> onnxruntime.InferenceSession:
        with threads_on(both):
            return onnxruntime.InferenceSession(model, options(both, spins=True), providers=providers(both))

    try:
        with _failures():
            session = place.call(opened).result()
            batch = partial(session.run, list(graph.outputs), {name: given[name] for name in graph.inputs})
            (seconds,) = place.call(_medians, [batch]).result()
        return float(seconds)
    finally:
        place.close()


@contextmanager
def _failures() -> Iterator[None]:
    """ONNX Runtime raises a dozen classes without a common base."""
    try:
        yield
    except EnsembleError:
        raise
    except Exception as error:
        raise failure(error, f"cannot be computed: {first_line(error)}") from error


def _medians(batches: Sequence[Callable[[], object]]) -> list[float]:
    """Of some rounds, in which all take turns."""
    rounds = [[_seconds(batch) for batch in batches] for _ in range(_ROUNDS)]
    return [median(times) for times in zip(*rounds, strict=True)]


def _seconds(batch: Callable[[], object]) -> float:
    found: list[float] = []
    until = time.perf_counter() + _SECONDS
    while not found or time.perf_counter() < until:
        started = time.perf_counter()
        batch()
        found.append(time.perf_counter() - started)
    return median(found)
