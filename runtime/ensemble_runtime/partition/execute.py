"""Computes a placed graph on two devices at once.

The caller's own thread computes the runs of the first device, one thread that lives as long as the executor those of
the second. Each keeps to its order and sleeps only where it needs something that the other has not finished yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any, TypeVar, cast

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError
from ensemble_runtime.partition.gates import Gate
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.plan import Array, Bound, Memory, bound, on_gpu
from ensemble_runtime.partition.runs import program
from ensemble_runtime.partition.sessions import Piece, constants, cut_out, open_session
from ensemble_runtime.partition.shapes import inferred, shapes_of, without_weights

_PLANS = 32
"""Shapes of inputs whose bindings are kept."""


T = TypeVar("T")


def _light(graph: Graph, prelude: Sequence[str]) -> Graph:
    """The graph without the weights that only sessions need, which have their own copies."""
    keep = {weight for name in prelude for weight in graph.by_name[name].weights}
    light = without_weights(graph.model, keep)
    shapes = {name: graph.tensors[name].shape for name in graph.inputs}
    return replace(graph, model=light) if inferred(light, shapes) else graph


class Executor:
    """A placed graph, ready to compute."""

    def __init__(self, graph: Graph, placement: Placement, devices: tuple[Device, Device]) -> None:
        """Open the sessions.

        The caller's thread is bound to the first device; the executor binds a thread to the second.

        Args:
            graph: What to compute.
            placement: Where.
            devices: The two devices, CPU core sets or, one of them, a GPU.

        Raises:
            ModelInvalidError: the placement does not fit the graph, or ONNX Runtime refuses a part of it.
            DeviceUnavailableError: the second device's cores cannot be had, or ONNX Runtime has no CUDA.
        """
        self._graph = graph
        self._placement = placement
        self._program = program(graph, placement)
        self._gpus = {i for i, device in enumerate(devices) if device.kind is DeviceKind.GPU}
        self._calls = [cut_out(graph, run.operators) for run in self._program.runs]
        self._pieces = {(run.device, call.piece) for run, call in zip(self._program.runs, self._calls, strict=True)}
        self._plans: dict[tuple[tuple[int, ...], ...], Bound] = {}
        self._second = _SecondDevice(devices[1])
        try:
            sessions = self._open(devices)
        except BaseException:
            self._second.close()
            raise
        self._graph = _light(graph, self._program.prelude)
        self._sessions = [
            (sessions[run.device, call.piece], call.names)
            for run, call in zip(self._program.runs, self._calls, strict=True)
        ]

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of weights on each device; one that several sessions read counts once for each of them."""
        held = [0, 0]
        for device, piece in self._pieces:
            held[device] += sum(self._graph.weights[name] for name in piece.weights)
        return held[0], held[1]

    def compute(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute one batch.

        Args:
            inputs: In the graph's order, datatypes and number of time steps; any number of rows.

        Returns:
            The graph's outputs, overwritten by the next call.

        Raises:
            ModelInvalidError: the shapes do not fit the graph.
            Exception: whatever ONNX Runtime raises on these rows.
        """
        plan = self._plan(tuple(x.shape for x in inputs))
        for buffer, given in zip(plan.inputs, inputs, strict=True):
            buffer[...] = given
        first, second = plan.work
        self._second.start(second)
        error = first()
        other = self._second.finish()
        if error is not None:
            raise error
        if isinstance(other, BaseException):
            raise other
        return list(plan.outputs)

    def close(self) -> None:
        """End the second device's thread."""
        self._second.close()

    def _plan(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[shapes] = self._bind(shapes)
        return plan

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        graph = self._graph
        if len(shapes) != len(graph.inputs):
            raise ModelInvalidError(f"{len(shapes)} inputs, expected {len(graph.inputs)}")
        found = shapes_of(graph.model, dict(zip(graph.inputs, shapes, strict=True)))
        own = constants(graph, self._program.prelude, found)
        placed = on_gpu(graph, self._placement, self._program, self._gpus) if self._gpus else set()
        return bound(graph, self._program, self._sessions, Memory(found, self._program, placed, own))

    def _open(self, devices: tuple[Device, Device]) -> dict[tuple[int, Piece], Any]:
        """One session for each device and piece, with all the outputs that any of its runs has."""
        wanted: dict[tuple[int, Piece], dict[str, None]] = {}
        for run, call in zip(self._program.runs, self._calls, strict=True):
            names = (call.names[output] for output in run.outputs)
            wanted.setdefault((run.device, call.piece), {}).update(dict.fromkeys(names))
        models = {key: key[1].model(self._graph, list(names)) for key, names in wanted.items()}

        def opened(device: int) -> dict[tuple[int, Piece], Any]:
            return {key: open_session(model, devices[device]) for key, model in models.items() if key[0] == device}

        return opened(0) | self._second.call(lambda: opened(1))


class _SecondDevice:
    """The thread of the second device: sleeps until it is given something to do."""

    def __init__(self, device: Device) -> None:
        self._begin, self._end = Gate(), Gate()
        self._work: Callable[[], object] | None = None
        self._answer: object = None
        self._thread = Thread(target=self._live, name=f"partition-{device.name}", daemon=True)
        self._thread.start()
        self.call(partial(_pin, device))

    def start(self, work: Callable[[], object]) -> None:
        """Have it do something; `finish` comes next."""
        self._work = work
        self._begin.release()

    def finish(self) -> object:
        """Wait until it is done; returns what the work did, or the exception that it raised."""
        self._end.acquire()
        return self._answer

    def call(self, work: Callable[[], T]) -> T:
        """Have it do something, and wait."""
        self.start(work)
        answer = self.finish()
        if isinstance(answer, BaseException):
            raise answer
        return cast("T", answer)

    def close(self) -> None:
        """End the thread."""
        self._work = None
        self._begin.release()
        self._thread.join()

    def _live(self) -> None:
        while True:
            self._begin.acquire()
            work = self._work
            if work is None:
                return
            try:
                self._answer = work()
            except BaseException as error:  # reported by `call`
                self._answer = error
            self._end.release()


def _pin(device: Device) -> None:
    if device.kind is not DeviceKind.CPU:
        return
    try:
        os.sched_setaffinity(0, device.cores)  # of this thread
    except OSError as error:
        raise DeviceUnavailableError(f"{device.name}: cannot pin to its cores: {error.strerror}") from error
