"""What each operator costs on each of two devices: seconds as ONNX Runtime takes them, bytes from the graph.

A device computes the whole graph as it would be served, call by call, in one thread that is bound to it: so caches are
as warm as they will be. How a call's time is shared among its operators is told by a second pass, in which each
operator is a call of its own. Two devices are also measured both busy at once: cores share caches and memory, and the
thread that feeds a GPU takes of what a core beside it has.

Once it is known which device computes what, that is measured again: a core whose caches hold half of the weights is
faster, two that read the same weights are slower, than what was measured first tells.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier

import numpy as np

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.partition.gpu import Gpu, on_gpu, timed
from ensemble_runtime.partition.graph import Graph, Placement, Tensor
from ensemble_runtime.partition.instance import Flow, Instance, Link, Task
from ensemble_runtime.partition.memory import Array, Memory
from ensemble_runtime.partition.places import Place, at_once
from ensemble_runtime.partition.plan import computation
from ensemble_runtime.partition.runs import Program, Run, program, static
from ensemble_runtime.partition.sessions import Piece, constants, cut_out, open_session, path_of
from ensemble_runtime.partition.shapes import Found, sample

log = logging.getLogger(__name__)

MIN_ROUNDS, MAX_ROUNDS, ROUND_SECONDS = 5, 200, 0.25
"""The graph is computed so often, within about so many seconds if that is enough."""
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

Seconds = Mapping[str, float]
"""By operator."""


@dataclass(frozen=True)
class Measured:
    """Seconds of each operator on one device."""

    alone: Seconds
    busy: Seconds
    """With the other device computing as well; the same as `alone` where the GPU is too small for all at once."""


def instance(
    graph: Graph, seconds: tuple[Seconds, Seconds], links: tuple[Link, Link], home: int | None, *, on_gpu: bool = False
) -> Instance:
    """The scheduling problem of a graph, operator by operator; with `on_gpu` the scarce device is one that is there."""
    index = {operator.name: i for i, operator in enumerate(graph.operators)}
    tasks = tuple(
        Task(
            name=operator.name,
            seconds=(seconds[0].get(operator.name), seconds[1].get(operator.name)),
            weights=operator.weights,
            workspace=workspace(graph, operator.name),
        )
        for operator in graph.operators
    )
    flows = tuple(
        Flow(
            name=name,
            bytes=tensor.bytes,
            producer=index[graph.producers[name]] if name in graph.producers else None,
            consumers=tuple(index[reader] for reader in graph.readers.get(name, ())),
            output=name in graph.outputs,
        )
        for name, tensor in graph.tensors.items()
    )
    return Instance(tasks, flows, graph.weights, links, home, frozenset(_twice(graph, index) if on_gpu else ()))


def _twice(graph: Graph, names: Iterable[str]) -> set[str]:
    """Weights of some operators that a GPU holds twice.

    ONNX Runtime's recurrent operators on CUDA arrange constant W, R and B anew for cuDNN and keep that, beside the
    weights themselves (`core/providers/cuda/rnn/cudnn_rnn_base.cc`, CacheCudnnRnnWeights).
    """
    recurrent = [graph.nodes[name] for name in names if graph.nodes[name].op_type in _GATES]
    return {weight for node in recurrent for weight in node.input[1:4] if weight in graph.weights}


def workspace(graph: Graph, name: str) -> int:
    """Bytes that ONNX Runtime takes for a recurrent operator's gates at all of its time steps; 0 for others."""
    node = graph.nodes[name]
    if node.op_type not in _GATES or node.input[0] not in graph.tensors:
        return 0
    hidden = next((x.i for x in node.attribute if x.name == "hidden_size"), 0)
    data = graph.tensors[node.input[0]]
    rows = math.prod(data.shape[:2])
    return rows * hidden * _GATES[node.op_type] * np.dtype(data.datatype).itemsize


def measured(graph: Graph, devices: Sequence[Device], room: float = math.inf) -> tuple[Measured, ...]:
    """Measure a graph on each of one or two devices.

    Args:
        graph: What to compute.
        devices: Where.
        room: Bytes of a GPU that may be taken.

    Returns:
        For each device; an operator that it refuses, or has no room for, has no seconds there.

    Raises:
        ModelInvalidError: ONNX Runtime fails at a part of it.
        DeviceUnavailableError: A device cannot be had.
    """
    places = [Place(device) for device in devices]
    try:
        # One after the other: what is copied on the way into a session takes several times its room.
        benches = [place.call(_bench, graph, place.device, room).result() for place in places]
        alone = [place.call(bench.seconds).result() for place, bench in zip(places, benches, strict=True)]
        together = [bench for bench in benches if isinstance(bench, _Bench)]
        if len(together) < 2:
            return tuple(Measured(found, found) for found in alone)
        busy = at_once(places, [bench.seconds for bench in together], max(bench.rounds for bench in together))
        return tuple(Measured(*found) for found in zip(alone, busy, strict=True))
    finally:
        for place in places:
            place.close()


def measured_in_place(
    graph: Graph, placement: Placement, devices: tuple[Device, Device], shares: Seconds
) -> tuple[Seconds, Seconds]:
    """Measure two sets of cores, each with its own operators, both busy at once; neither waits for the other.

    Args:
        graph: What to compute.
        placement: Where.
        devices: Two sets of cores.
        shares: How the time of a call is shared among its operators; those that are not in there share alike.

    Returns:
        Seconds of the operators of each device.

    Raises:
        ModelInvalidError: ONNX Runtime refuses a part of it.
        DeviceUnavailableError: A device cannot be had.
    """
    served = program(graph, placement)
    tensors = {name: _found(x) for name, x in graph.tensors.items()}
    # One memory, as in serving: what one core writes the other one reads.
    memory = Memory(tensors, served, random_inputs(graph) | constants(graph, served.prelude, tensors))
    places = [Place(device) for device in devices]
    try:
        own = [replace(served, runs=tuple(run for run in served.runs if run.device == d)) for d in (0, 1)]
        chains = [
            place.call(_Chain, graph, part, memory, place.device).result()
            for place, part in zip(places, own, strict=True)
        ]
        rough = max(sum(place.call(chain.seconds, 1).result()) for place, chain in zip(places, chains, strict=True))
        found = at_once(places, [chain.seconds for chain in chains], _rounds(rough))
        first, second = (_by_operator(graph, placement, d, own[d].runs, found[d], shares) for d in (0, 1))
        return first, second
    finally:
        for place in places:
            place.close()


def _bench(graph: Graph, device: Device, room: float) -> _Bench | _Piecemeal:
    """A graph on a device; a GPU that has no room for all of it at once holds one kind of operators at a time."""
    if device.kind is not DeviceKind.GPU:
        return _Bench(graph, device)
    fits = _held(graph, [operator.name for operator in graph.operators]) <= room
    return (_tried(graph, device) if fits else None) or _Piecemeal(graph, device, room)


def _tried(graph: Graph, device: Device) -> _Bench | None:
    """A graph on a device that has room for it, and for what it computes with; else nothing of it is left there."""
    try:
        bench = _Bench(graph, device)
        bench.seconds(1)
        return bench
    except OutOfMemoryError as error:
        log.info("%s: measured operator by operator, %s", device.name, error)
    return None


class _Piecemeal:
    """A graph on a GPU that is too small for it: what each kind of operators takes by itself."""

    def __init__(self, graph: Graph, device: Device, room: float) -> None:
        prelude = static(graph)  # known before any batch, and wanted as it is: there may be shapes among it
        kinds: dict[Piece, list[str]] = {}
        for operator in graph.operators:
            if operator.name not in prelude:
                kinds.setdefault(cut_out(graph, [operator.name]).piece, []).append(operator.name)
        tensors = {name: _found(x) for name, x in graph.tensors.items()}
        own = random_inputs(graph) | constants(graph, [x.name for x in graph.operators if x.name in prelude], tensors)
        self._seconds = dict.fromkeys(prelude, 0.0)
        for alike in kinds.values():
            try:
                if (size := _held(graph, alike)) > room:
                    raise OutOfMemoryError(f"{size} bytes, and there is room for {room}")
                self._seconds |= _one_kind(graph, alike, own, device)
            except (ModelInvalidError, OutOfMemoryError) as error:
                log.info("%s computes no %s: %s", device.name, alike[0], error)

    def seconds(self) -> Seconds:
        """Of each operator that has room."""
        return self._seconds


def _held(graph: Graph, names: Sequence[str]) -> int:
    """Bytes of a GPU that some operators take while they are measured: weights, all tensors, and workspace."""
    chosen = [graph.by_name[name] for name in names]
    weights = {weight for operator in chosen for weight in operator.weights}
    tensors = {x for operator in chosen for x in (*operator.inputs, *operator.outputs)}
    most = max((workspace(graph, name) for name in names), default=0)
    return (
        sum(graph.weights[x] for x in (*weights, *_twice(graph, names)))
        + sum(graph.tensors[x].bytes for x in tensors)
        + most
    )


def _one_kind(graph: Graph, names: Sequence[str], own: Mapping[str, Array], device: Device) -> Seconds:
    """Seconds of operators that one session computes, which is closed then."""
    program = Program(tuple(_apart(graph, name) for name in names), (), {})
    tensors = {name: _found(x) for name, x in graph.tensors.items()}
    chain = _Chain(graph, program, Memory(tensors, program, own), device)
    return dict(zip(names, chain.seconds(2 * MIN_ROUNDS), strict=True))


def _by_operator(
    graph: Graph, placement: Placement, device: int, runs: Sequence[Run], seconds: Sequence[float], shares: Seconds
) -> Seconds:
    """The time of each run, shared among its operators; what is in no run takes none."""
    found = {x.name: 0.0 for x in graph.operators if placement.device[x.name] == device}
    for run, spent in zip(runs, seconds, strict=True):
        weights = {name: shares.get(name, 1.0) for name in run.operators}
        total = sum(weights.values()) or 1.0
        found |= {name: spent * weight / total for name, weight in weights.items()}
    return found


def _rounds(seconds: float) -> int:
    """How often a graph that takes so long is computed, for a reliable median in a short time."""
    return min(MAX_ROUNDS, max(MIN_ROUNDS, round(ROUND_SECONDS / max(seconds, 1e-6))))


class _Bench:
    """A graph on one device: as calls that would be served, and operator by operator."""

    def __init__(self, graph: Graph, device: Device) -> None:
        served = program(graph, Placement({operator.name: 0 for operator in graph.operators}))
        working = [x.name for x in graph.operators if x.name not in served.prelude]
        apart = Program(tuple(_apart(graph, name) for name in working), (), {})
        tensors = {name: _found(x) for name, x in graph.tensors.items()}
        known = random_inputs(graph) | constants(graph, served.prelude, tensors)
        self._served = _Chain(graph, apart, Memory(tensors, apart, known), device, refusals=True)
        names = [run.operators[0] for run in self._served.runs]
        self._shares = dict(zip(names, self._served.seconds(3), strict=True))
        self._free = dict.fromkeys(served.prelude, 0.0)
        if len(self._shares) < len(working):
            return  # not to be served as a whole: what it does compute is timed call by call
        del self._served  # there may not be room for both
        self._served = _Chain(graph, served, Memory(tensors, served, known), device)

    @property
    def rounds(self) -> int:
        """How often the graph is to be computed."""
        return _rounds(sum(self._shares.values()))

    def seconds(self, rounds: int = 0, barrier: Barrier | None = None) -> Seconds:
        """Of each operator that the device computes; with a barrier while the other one is busy with the same."""
        shares = self._shares
        found = self._free | dict.fromkeys(shares, 0.0)
        for run, seconds in zip(self._served.runs, self._served.seconds(rounds or self.rounds, barrier), strict=True):
            total = sum(shares[name] for name in run.operators)
            for name in run.operators:
                found[name] = seconds * shares[name] / total
        return found


class _Chain:
    """The calls of a program in order, bound to their tensors.

    Those of a GPU are measured with all tensors in its memory: what crosses, crosses at the cost of the link.
    """

    def __init__(
        self, graph: Graph, program: Program, memory: Memory, device: Device, *, refusals: bool = False
    ) -> None:
        """Open the sessions; with `refusals` the runs that ONNX Runtime refuses are left out."""
        self._memory = memory  # kept for as long as calls are bound to it
        calls = [cut_out(graph, run.operators) for run in program.runs]
        wanted: dict[Piece, dict[str, None]] = {}
        for run, call in zip(program.runs, calls, strict=True):
            wanted.setdefault(call.piece, {}).update(dict.fromkeys(call.names[y] for y in run.outputs))
        gpu = Gpu() if device.kind is DeviceKind.GPU else None
        sessions = {}
        for piece, names in wanted.items():
            try:
                with piece.written(graph, names) as model:
                    sessions[piece] = open_session(path_of(model), device, gpu.computing.handle if gpu else None)
            except ModelInvalidError as error:
                if not refusals:
                    raise
                log.info("%s computes no %s: %s", device.name, piece.op_type, error)
        able = [(run, call) for run, call in zip(program.runs, calls, strict=True) if call.piece in sessions]
        self.runs = tuple(run for run, _ in able)
        bound = [(sessions[call.piece], call.names) for _, call in able]
        self._times: Callable[[], list[float]]
        if gpu:
            _, there = on_gpu(self.runs, bound, memory, gpu, given=(), taken=())
            self._times = partial(timed, gpu, [*there.values()])
        else:
            steps = [computation(*found, run, memory) for run, found in zip(self.runs, bound, strict=True)]
            self._times = partial(_times, steps)

    def seconds(self, rounds: int, barrier: Barrier | None = None) -> list[float]:
        """The median seconds of each call; with a barrier every round begins with one of the other device."""
        self._round()
        times = []
        for _ in range(rounds):
            if barrier is not None:
                barrier.wait()
            times.append(self._round())
        return [statistics.median(found) for found in zip(*times, strict=True)]

    def _round(self) -> list[float]:
        try:
            return self._times()
        except DeviceUnavailableError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
            raise failure(error, f"cannot be computed in parts: {first_line(error)}") from error


def _times(steps: Sequence[Callable[[], None]]) -> list[float]:
    found = []
    for compute in steps:
        before = time.perf_counter()
        compute()
        found.append(time.perf_counter() - before)
    return found


def _apart(graph: Graph, name: str) -> Run:
    operator = graph.by_name[name]
    outputs = tuple(y for y in operator.outputs if y in graph.readers or y in graph.outputs)
    return Run(0, (name,), operator.inputs, outputs or operator.outputs[:1])


def random_inputs(graph: Graph) -> dict[str, Array]:
    """Inputs of a graph by name, on which it can be computed."""
    random = np.random.default_rng(0)
    found = sample(graph.light, {name: _found(graph.tensors[name]) for name in graph.inputs}, graph.large)
    return {
        name: random.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in found.items()
    }


def _found(tensor: Tensor) -> Found:
    return Found(tensor.datatype, tensor.shape)
