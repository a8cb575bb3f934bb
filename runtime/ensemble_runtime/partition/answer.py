"""What a partition would be, as plain data: for the planner, for `ensemblectl partition`, and for whoever draws it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import Field

from ensemble_runtime.config import (
    BatchSize,
    Datatype,
    Device,
    DeviceKind,
    Member,
    ModelFormat,
    Partition,
    PartitionObjective,
    Schema,
    TensorSpec,
)
from ensemble_runtime.devices.binding import bind, leave_cores
from ensemble_runtime.devices.working_memory import give_memory_back
from ensemble_runtime.errors import ManifestError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import first_line
from ensemble_runtime.members.storage import fetch
from ensemble_runtime.partition.graph import Graph, Tensor, parse
from ensemble_runtime.partition.held import Cell, Held, held
from ensemble_runtime.partition.instance import SCARCE
from ensemble_runtime.partition.planning import LOWER, Choice, Costs, Opened, Planned, chosen, ways
from ensemble_runtime.partition.schedule import NoScheduleError
from ensemble_runtime.partition.second import PROCESS_BYTES
from ensemble_runtime.partition.simulation import SimulatedGpu
from ensemble_runtime.partition.timeline import Schedule
from ensemble_runtime.partition.together import able
from ensemble_runtime.partition.trial import executed, threaded
from ensemble_runtime.sizes import GPU_CELL_BYTES

log = logging.getLogger(__name__)

POINT = ("digest", "deviceType", "precision", "batchSize", "seconds", "memoryBytes", "secondBytes")
"""What a profile keeps of a record."""
MAX_BARS = 2000
"""More operators than anybody looks at; the rest of a schedule is left out of the chart, not of the placement."""


class PartitionRequest(Schema):
    """Which model to split over which devices, and at which batch sizes."""

    member: Member
    batch_sizes: tuple[BatchSize, ...] = Field((1,), min_length=1)
    inputs: tuple[TensorSpec, ...] = Field((), description="The model's inputs in order; variable ones at their most.")
    shapes: dict[str, tuple[int, ...]] = Field({}, description="Of inputs, rows included, that the model leaves open.")
    devices: tuple[Device, Device] = Field(description="The scarce one first.")
    simulated: SimulatedGpu | None = Field(None, description="Costs of the first device, which is not there then.")
    chart: bool = Field(
        True, description="The schedule's bars, the curve and the proof; otherwise, for a profile, what a cell takes."
    )


def partition(request: PartitionRequest, cache: Path) -> Iterator[dict[str, Any]]:
    """Measure and schedule a model at each batch size.

    Yields:
        One record a batch size, in camelCase; see docs/partition.md. What a profile of the pair holds is in it as
            `POINT` names it. Sizes from the first for which no schedule is as quick as it is to be are left out.

    Raises:
        EnsembleError: The model or a device cannot be used, or not even for the first size there is a schedule as
            quick as it is to be.
    """
    if request.member.model.format is not ModelFormat.ONNX:
        raise ManifestError(f"member '{request.member.name}': only ONNX models can be partitioned")
    give_memory_back()  # to the cell that is loaded beside this process
    wanted = request.member.partition or Partition(objective=PartitionObjective.LATENCY)
    found = fetch(request.member.model, cache)
    try:
        model = onnx.load(found.path)
    except Exception as error:  # protobuf and onnx have no common base
        raise ModelInvalidError(f"{found.path.name}: cannot be read as ONNX: {first_line(error)}") from error
    real = request.devices[1:] if request.simulated else request.devices
    gpu = next((device for device in real if device.kind is DeviceKind.GPU), None)
    before = 0
    if gpu is not None:
        bind(gpu)
        leave_cores(gpu, request.devices[1])
        before = _free_bytes(gpu)
    if request.devices[1].kind is not DeviceKind.CPU:
        raise ManifestError(f"{request.devices[1].name}: the second device has to be a set of cores")
    costs = Costs(request.devices, request.simulated)
    if gpu is not None:  # by now the context of a process is there, as it will be beside a cell
        costs.room = min(costs.room, _free_bytes(gpu))
    for rows in request.batch_sizes:
        graph = parse(model, _shapes(model, request, rows))
        try:
            planned, ran, threads = _in_time(graph, wanted, costs, request)
        except OutOfMemoryError as error:  # or there is no schedule as quick
            if rows == request.batch_sizes[0]:
                raise
            log.warning("%s rows: %s; larger batches are not measured", rows, error)
            return
        # What is still taken when no session is left: the context, which every process has of its own.
        fixed = max(0, before - _free_bytes(gpu)) if gpu is not None else 0
        answer = record(planned, wanted, request.devices, chart=request.chart)
        if ran is not None:
            answer["measuredMs"] = 1000 * ran
        if threads is not None:
            answer["threadsMs"] = 1000 * threads
        profiled = _profiled(request, fixed, _served(planned, wanted, ran, threads))
        if not request.chart and request.simulated is None:
            cell = _cell(request, found.path, graph, rows, profiled["memoryBytes"])
            profiled |= _with_what_is_held(profiled, held(cell), gpu is not None)
        yield {"digest": found.sha256, "batchSize": rows, "fixedBytes": fixed, **profiled, **answer}


def _cell(request: PartitionRequest, path: Path, graph: Graph, rows: int, booked: int) -> Cell:
    """What the plan would make of a record. A request does not tell the outputs, and leaves inputs open."""
    inputs, outputs = (tuple(_spec(graph.tensors[name]) for name in x) for x in (graph.inputs, graph.outputs))
    return Cell(request.member, path, inputs, outputs, request.devices, rows, booked)


def _spec(tensor: Tensor) -> TensorSpec:
    datatype = next((x for x in Datatype if np.dtype(x.numpy) == tensor.datatype), None)
    if datatype is None or not tensor.shape:
        raise ModelInvalidError(f"'{tensor.name}' is {tensor.datatype} {list(tensor.shape)}, which no row can be")
    return TensorSpec(name=tensor.name, datatype=datatype, shape=tensor.shape[1:])


def _with_what_is_held(planned: Mapping[str, Any], found: Held, on_gpu: bool) -> dict[str, int]:
    """The bytes of a record, of which a cell takes more while it loads: that is of the cores' memory."""
    first = max(planned["memoryBytes"], found.gpu_bytes)
    counted = first + GPU_CELL_BYTES if on_gpu else first
    return {"memoryBytes": first, "secondBytes": max(planned["secondBytes"], found.main_bytes - counted)}


def _in_time(
    graph: Graph, wanted: Partition, costs: Costs, request: PartitionRequest
) -> tuple[Planned, float | None, float | None]:
    """A plan that has room and keeps `latencyMs` also when it is run; the seconds that it takes, and those of threads.

    Raises:
        NoScheduleError: Nothing that was found is as quick.
        OutOfMemoryError: Memory runs out, with less than was counted, too.
        EnsembleError: The graph cannot be measured.
    """
    measured, costs, lacking = ways(graph, costs), copy(costs), ""
    for _ in range(1 + LOWER):
        try:
            return _run_in_time(measured, wanted, costs, request)
        except NoScheduleError:
            if not lacking:
                raise
            break
        except OutOfMemoryError as error:
            lacking = str(error)
            log.warning("planned again with less room: %s", lacking)
    raise OutOfMemoryError(lacking)


def _run_in_time(
    measured: Sequence[Opened], wanted: Partition, costs: Costs, request: PartitionRequest
) -> tuple[Planned, float | None, float | None]:
    """The same by the bytes that are counted; where memory runs out all the same there is less room from then on."""
    limit = math.inf if wanted.latency_ms is None else wanted.latency_ms / 1000

    def run(planned: Planned) -> float | None:
        choice = planned.choice
        if not choice.beside or request.simulated:
            return None
        try:
            return executed(choice.opened.graph, choice.placement, request.devices)
        except OutOfMemoryError:
            costs.lower(choice)
            raise

    if wanted.objective is PartitionObjective.LATENCY:
        planned = chosen(measured, Partition(objective=wanted.objective), costs, chart=request.chart)
        try:
            ran = run(planned)
        except ModelInvalidError as error:
            if (whole := planned.baselines[SCARCE]) is None:
                raise
            log.warning("a partition is left out: %s", error)
            planned, ran = replace(planned, choice=whole), None
        quick = not request.simulated and able(request.devices)
        threads = threaded(measured[0].graph, request.devices) if quick else None
        least = _served(planned, wanted, ran, threads)[0]
        if least > limit:
            raise _too_slow(least, limit)
        return planned, ran, threads
    aim, least = limit, math.inf
    for _ in range(1 + LOWER):
        try:
            planned = chosen(measured, wanted.model_copy(update={"latency_ms": 1000 * aim}), costs, chart=request.chart)
        except NoScheduleError:
            if least is math.inf:
                raise
            break
        ran = run(planned)
        if ran is None or ran <= limit:
            return planned, ran, None
        aim, least = limit * planned.choice.schedule.makespan / ran, min(least, ran)
    raise _too_slow(least, limit)


def _too_slow(seconds: float, limit: float) -> NoScheduleError:
    return NoScheduleError(
        f"a batch takes {seconds * 1000:.3g} ms when it is run, latencyMs permits {limit * 1000:.3g}"
    )


def _served(
    planned: Planned, wanted: Partition, ran: float | None, threads: float | None
) -> tuple[float, Schedule, bool]:
    """What a cell will be by its trial: its seconds, its schedule, and whether it has a second process.

    Args:
        planned: The plan.
        wanted: For the least time, the whole model may serve as well.
        ran: Seconds that it took as it would be served; None where it was not run.
        threads: Seconds that the whole model took on the threads of both devices; None where it is not tried.
    """
    choice, whole = planned.choice, planned.baselines[SCARCE]
    found = [(choice.schedule.makespan if ran is None else ran, choice.schedule, choice.beside)]
    if whole is not None and wanted.objective is PartitionObjective.LATENCY:
        alone = [whole.schedule.makespan, *([] if threads is None else [threads])]
        found += [(seconds, whole.schedule, False) for seconds in alone]
    return min(found, key=lambda way: way[0])


def _profiled(request: PartitionRequest, fixed: int, served: tuple[float, Schedule, bool]) -> dict[str, Any]:
    """What a cell costs on the pair by the plan, its second process included."""
    seconds, schedule, beside = served
    return {
        "deviceType": ":".join(device.type for device in request.devices),
        "precision": request.member.precision.value,
        "seconds": seconds,
        "memoryBytes": schedule.scarce_bytes + fixed,
        "secondBytes": schedule.other_bytes + PROCESS_BYTES * beside,
    }


def _free_bytes(gpu: Device) -> int:
    from ensemble_runtime.devices import nvidia  # here: the bindings are optional

    return nvidia.find(str(gpu.uuid)).free_bytes


def record(planned: Planned, wanted: Partition, devices: tuple[Device, Device], *, chart: bool) -> dict[str, Any]:
    """What was found, as plain data."""
    choice = planned.choice
    placement = choice.placement
    found: dict[str, Any] = {
        "objective": wanted.objective.value,
        "latencyMs": wanted.latency_ms,
        "devices": [{"name": device.name, "kind": device.kind.value, "type": device.type} for device in devices],
        "simulated": planned.simulated,
        "links": [
            {"latencyUs": link.latency * 1e6, "secondsPerGib": link.seconds_per_byte * 2**30}
            for link in choice.schedule.instance.links
        ],
        "choice": _point(choice)
        | {
            "busyMs": [choice.schedule.busy(device) * 1000 for device in (0, 1)],
            "crossings": len(choice.schedule.transfers()),
            "operators": len(choice.opened.graph.operators),
            "groups": len(choice.opened.groups),
        },
        "baselines": [None if base is None else _point(base) for base in planned.baselines],
        "placement": {"device": dict(placement.device), "order": list(placement.order)},
    }
    if chart:
        found["curve"] = [_point(point) for point in planned.curve]
        found["bars"] = _bars(choice)
        found["transfers"] = _transfers(choice)
        if planned.proof is not None:
            memory = wanted.objective is PartitionObjective.MEMORY
            value = choice.schedule.scarce_bytes if memory else choice.schedule.makespan
            best = planned.proof.schedule.scarce_bytes if memory else planned.proof.schedule.makespan
            found["gap"] = {"fraction": value / best - 1 if best else 0.0, "proven": planned.proof.complete}
    return found


def _point(choice: Choice) -> dict[str, Any]:
    schedule = choice.schedule
    held = {
        name
        for task, device in zip(schedule.instance.tasks, schedule.device, strict=True)
        for name in task.weights
        if device == 0
    }
    return {
        "timeSteps": choice.opened.steps,
        "byGates": choice.opened.by_gates,
        "makespanMs": schedule.makespan * 1000,
        "scarceBytes": schedule.scarce_bytes,
        "scarceWeightBytes": sum(schedule.instance.weights[name] for name in held),
        "otherBytes": schedule.other_bytes,
    }


def _bars(choice: Choice) -> list[dict[str, Any]]:
    schedule = choice.schedule
    names = [task.name for task in schedule.instance.tasks]
    return [
        {
            "name": names[task],
            "device": schedule.device[task],
            "startMs": schedule.starts[task] * 1000,
            "endMs": schedule.finish(task) * 1000,
        }
        for task in schedule.sequence[:MAX_BARS]
    ]


def _transfers(choice: Choice) -> list[dict[str, Any]]:
    flows = choice.schedule.instance.flows
    return [
        {
            "name": flows[transfer.flow].name,
            "bytes": flows[transfer.flow].bytes,
            "from": transfer.source,
            "startMs": transfer.start * 1000,
            "endMs": transfer.finish * 1000,
        }
        for transfer in choice.schedule.transfers()[:MAX_BARS]
    ]


def _shapes(model: onnx.ModelProto, request: PartitionRequest, rows: int) -> Mapping[str, tuple[int, ...]]:
    """The shape of each input, the rows included."""
    weights = {x.name for x in model.graph.initializer}
    inputs = [x for x in model.graph.input if x.name not in weights]
    if request.inputs and len(request.inputs) != len(inputs):
        raise ModelInvalidError(f"the model has {len(inputs)} inputs, the manifest has {len(request.inputs)}")
    if unknown := set(request.shapes) - {x.name for x in inputs}:
        raise ManifestError(f"no input is named {sorted(unknown)[0]}; there are {', '.join(x.name for x in inputs)}")
    found = {}
    for i, value in enumerate(inputs):
        dims = value.type.tensor_type.shape.dim
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        if request.inputs:
            spec = request.inputs[i]
            sizes = [rows, *(spec.max_length if size == -1 else size for size in spec.shape)]
        elif value.name in request.shapes:
            sizes = [*request.shapes[value.name]]
        elif sizes and sizes[0] is None:
            sizes[0] = rows
        if not all(sizes):
            written = ", ".join(dim.dim_param or str(dim.dim_value) for dim in dims)
            raise ManifestError(f"input '{value.name}' has shape [{written}]; say how large it is")
        found[value.name] = tuple(size for size in sizes if size is not None)
    return found
