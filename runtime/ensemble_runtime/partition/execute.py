"""Computes a placed graph on two devices at once.

The caller's own thread computes the runs of the first device, a process that lives as long as the executor those of the
second. Each keeps to its order and waits only where it needs something that the other has not finished yet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.gpu import Gpu
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.memory import Array, Memory, Pool
from ensemble_runtime.partition.plan import Bound, bound
from ensemble_runtime.partition.runs import program
from ensemble_runtime.partition.second import SecondDevice
from ensemble_runtime.partition.sessions import Piece, constants, cut_out, open_session, path_of
from ensemble_runtime.partition.shapes import inferred, shapes_of

_PLANS, _MOST_PLANS = 32, 256
"""Shapes of inputs whose bindings are kept: as many as a full batch has rows, but no fewer and no more than so many. A
shape that is not among them costs a batch milliseconds; one that is holds a descriptor in each process."""


def _light(graph: Graph, prelude: Sequence[str]) -> Graph:
    """The graph without the weights that only sessions need, which have their own copies."""
    keep = {weight for name in prelude for weight in graph.by_name[name].weights}
    shapes = {name: graph.tensors[name].shape for name in graph.inputs}
    if not inferred(graph.light, shapes):
        return graph
    # Copied one by one: each that is kept as it is would keep the whole model.
    return replace(graph, large={x: copy.deepcopy(y) for x, y in graph.large.items() if x in keep}, parts={})


class Executor:
    """A placed graph, ready to compute."""

    def __init__(self, graph: Graph, placement: Placement, devices: tuple[Device, Device]) -> None:
        """Open the sessions.

        The caller's thread is bound to the first device; the executor starts a process on the second.

        Args:
            graph: What to compute.
            placement: Where.
            devices: A GPU or a set of cores, and a set of cores.

        Raises:
            ModelInvalidError: the placement does not fit the graph, or ONNX Runtime refuses a part of it.
            DeviceUnavailableError: the second device's cores cannot be had, or ONNX Runtime has no CUDA.
            SystemExit: as of `compute`.
        """
        self._graph = graph
        self._program = program(graph, placement)
        self._pool, self._gpu = Pool(), Gpu() if devices[0].kind is DeviceKind.GPU else None
        self._calls = [cut_out(graph, run.operators) for run in self._program.runs]
        self._pieces = {(run.device, call.piece) for run, call in zip(self._program.runs, self._calls, strict=True)}
        self._plans: dict[tuple[tuple[int, ...], ...], Bound] = {}
        self._second = SecondDevice(devices[1])
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
            SystemExit: the second device's process is gone, and this one has to end as well.
            Exception: whatever ONNX Runtime raises on these rows.
        """
        plan = self._plan(tuple(x.shape for x in inputs))
        for buffer, given in zip(plan.inputs, inputs, strict=True):
            buffer[...] = given
        gates, bells = plan.memory.gates, self._second.bells
        if plan.plan is None:
            error, other = plan.walk(bells, gates, 1), None
        else:
            turn = self._second.start(plan.plan)
            error = plan.walk(bells, gates, turn)
            other = self._second.finish()
        if failure := error or other:
            raise failure
        return list(plan.outputs)

    def close(self) -> None:
        """End the second device's process."""
        self._second.close()

    def _plan(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        plan = self._plans.get(shapes)
        if plan is not None:
            return plan
        full = tuple(self._graph.tensors[name].shape for name in self._graph.inputs)
        rows = max((shape[0] for shape in full if shape), default=1)
        if len(self._plans) >= min(max(_PLANS, rows), _MOST_PLANS):
            self._forget()
        if not self._plans:
            self._plans[full] = self._bind(full)  # the others find room where it has
        if shapes not in self._plans:
            self._plans[shapes] = self._bind(shapes)
        return self._plans[shapes]

    def _forget(self) -> None:
        for plan in self._plans.values():
            if plan.plan is not None:
                self._second.drop(plan.plan)
        self._plans.clear()
        self._pool = Pool()

    def _bind(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        graph = self._graph
        if len(shapes) != len(graph.inputs):
            raise ModelInvalidError(f"{len(shapes)} inputs, expected {len(graph.inputs)}")
        found = shapes_of(graph.light, dict(zip(graph.inputs, shapes, strict=True)), graph.large)
        own = constants(graph, self._program.prelude, found)
        plan = bound(graph, self._program, self._sessions, Memory(found, self._program, own, self._pool), self._gpu)
        if not plan.parts:
            return plan
        return replace(plan, plan=self._second.bind(plan.memory.shared, plan.memory.gate_bytes, plan.parts))

    def _open(self, devices: tuple[Device, Device]) -> dict[tuple[int, Piece], Any]:
        """A session, or its number, for each device and piece, with all the outputs that any of its runs has."""
        wanted: dict[tuple[int, Piece], dict[str, None]] = {}
        for run, call in zip(self._program.runs, self._calls, strict=True):
            names = (call.names[output] for output in run.outputs)
            wanted.setdefault((run.device, call.piece), {}).update(dict.fromkeys(names))
        found = {}
        for (device, piece), outputs in wanted.items():
            with piece.written(self._graph, outputs) as model:
                found[device, piece] = self._opened(model, device, devices)
        return found

    def _opened(self, model: int, device: int, devices: tuple[Device, Device]) -> Any:
        if device:
            return self._second.open(model)
        return open_session(path_of(model), devices[0], self._gpu.computing.handle if self._gpu else None)
