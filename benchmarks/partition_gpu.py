"""Recurrent models on a GPU and one core: against either alone, and what leaves the GPU in time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from common import Effort, Report, cores, main, progress, verdict
from recurrent_models import Recurrent, models, stacked

from ensemble_runtime.config import (
    Datatype,
    Device,
    DeviceKind,
    Member,
    ModelFormat,
    ModelSource,
    Partition,
    PartitionObjective,
    TensorSpec,
)
from ensemble_runtime.devices.binding import bind, leave_cores
from ensemble_runtime.devices.local import discover
from ensemble_runtime.devices.nvidia import find
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import parse
from ensemble_runtime.partition.instance import SCARCE
from ensemble_runtime.partition.planning import Choice, Costs, chosen, ways
from ensemble_runtime.partition.schedule import NoScheduleError

SLACK, SAVED, ERROR = 1.5, 0.675, 0.15
MIB = 2**20
HEADER = [
    "model", "steps, rows", "GPU alone", "core alone", "Latency", "error", "Memory: off the GPU", "takes", "error",
    "MiB on the GPU by the plan", "by NVML",
]  # fmt: skip

Devices = tuple[Device, Device]


@dataclass(frozen=True)
class Ran:
    """A way of computing, as it was."""

    seconds: float
    gpu_bytes: int
    """By which the GPU's free memory fell meanwhile; contexts count with the first that has one."""


@dataclass(frozen=True)
class Row:
    """What a model came to."""

    cells: list[str]
    errors: list[float]
    """Of its predictions."""
    saved: float


def partition_gpu(effort: Effort) -> Report:
    """Every model of the list, and some that are large enough for a GPU."""
    gpus = [device for device in discover() if device.kind is DeviceKind.GPU]
    if not gpus or len(cores()) < 2:
        raise RuntimeError("needs a GPU, and a core besides")
    devices = gpus[0], _core(cores()[-1])
    bind(gpus[0])
    leave_cores(*devices)
    rows = [_row(model, devices, effort) for model in (*models(), *_large())]
    errors, saved = [abs(error) for row in rows for error in row.errors], [row.saved for row in rows]
    met = sum(share >= SAVED for share in saved)
    blank = [""] * 4
    return Report(
        f"Each model on one {gpus[0].type} and one core. Alone: ONNX Runtime with the whole model, input and output in "
        "the host's memory. Latency and Memory: planned from what was measured, and computed so; the error is that of "
        f"the prediction. Memory may take {SLACK} times as long as the GPU alone. Medians of {effort.rounds} medians "
        f"over {effort.seconds:g} s.",
        HEADER,
        [
            *(row.cells for row in rows),
            [
                "median error",
                *blank,
                f"{median(errors):.1%}: {verdict(median(errors), ERROR, at_most=True)}",
                "",
                *blank,
            ],
            [f"at least {SAVED:.1%} off", *blank, "", f"{met} of {len(saved)} models", *blank],
        ],
    )


def _large() -> list[Recurrent]:
    return [
        Recurrent(f"LSTM {hidden}, {layers} layers", partial(stacked, "LSTM", hidden, layers, 64), hidden, layers, 64)
        for hidden, layers in ((1024, 8), (2048, 4))
    ]


def _core(core: int) -> Device:
    return Device(name=f"core-{core}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**33, cores=(core,))


def _row(recurrent: Recurrent, devices: Devices, effort: Effort) -> Row:
    progress(recurrent.name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(recurrent.build(), str(path))
        graph = parse(onnx.load(path), {"x": recurrent.shape})
        there, here = (_whole(path, recurrent, device, effort) for device in devices)
    costs = Costs(devices)
    measured = ways(graph, costs)
    quick = chosen(measured, Partition(objective=PartitionObjective.LATENCY), costs, chart=False)
    everything = quick.baselines[SCARCE]
    assert everything is not None, "a GPU computes all of these"
    ran = _executed(quick.choice, devices, effort)
    errors = [quick.choice.schedule.makespan / ran.seconds - 1]
    own = sum(device == SCARCE for device in quick.choice.schedule.device)
    cells = [
        recurrent.name,
        f"{recurrent.steps}, {recurrent.rows}",
        f"{1e3 * there.seconds:.2f} ms",
        f"{1e3 * here.seconds:.2f} ms",
        f"{1e3 * ran.seconds:.2f} ms, {own} of {len(quick.choice.schedule.device)} groups on the GPU",
        f"{errors[0]:+.1%}",
    ]
    counted = everything.schedule.scarce_bytes
    try:
        wanted = Partition(objective=PartitionObjective.MEMORY, latency_ms=1e3 * SLACK * there.seconds)
        small = chosen(measured, wanted, costs, chart=False).choice
    except NoScheduleError:
        return Row([*cells, "nothing", "", "", f"{counted / MIB:.1f}", f"{there.gpu_bytes / MIB:.0f}"], errors, 0.0)
    ran = _executed(small, devices, effort)
    errors.append(small.schedule.makespan / ran.seconds - 1)
    saved = 1 - small.schedule.scarce_bytes / counted
    cells += [
        f"{saved:.1%}",
        f"{1e3 * ran.seconds:.2f} ms, {ran.seconds / there.seconds:.2f} times",
        f"{errors[1]:+.1%}",
        f"{counted / MIB:.1f}, then {small.schedule.scarce_bytes / MIB:.1f}",
        f"{there.gpu_bytes / MIB:.0f}, then {ran.gpu_bytes / MIB:.0f}",
    ]
    return Row(cells, errors, saved)


def _whole(path: Path, recurrent: Recurrent, device: Device, effort: Effort) -> Ran:
    member = Member(name="model", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX))
    x_spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=recurrent.shape[1:])
    y_spec = TensorSpec(name="y", datatype=Datatype.FP32, shape=recurrent.output)
    x = np.random.default_rng(0).normal(size=recurrent.shape).astype(np.float32)
    before, free = os.sched_getaffinity(0), _free(device)
    os.sched_setaffinity(0, device.cores or before)
    try:
        model = OnnxModel(member, path, (x_spec,), (y_spec,), device)
        seconds = _seconds(lambda: model.predict([x]), effort)
        return Ran(seconds, free - _free(device))
    finally:
        os.sched_setaffinity(0, before)


def _executed(choice: Choice, devices: Devices, effort: Effort) -> Ran:
    graph, free, chance = choice.opened.graph, _free(devices[0]), np.random.default_rng(0)
    tensors = [graph.tensors[name] for name in graph.inputs]
    given = [chance.normal(size=x.shape).astype(x.datatype) for x in tensors]
    with closing(Executor(graph, choice.placement, devices)) as executor:
        return Ran(_seconds(lambda: executor.compute(given), effort), free - _free(devices[0]))


def _free(device: Device) -> int:
    return find(str(device.uuid)).free_bytes if device.kind is DeviceKind.GPU else 0


def _seconds(batch: Callable[[], object], effort: Effort) -> float:
    """The median of some rounds' medians."""
    rounds = []
    for _ in range(effort.rounds):
        times: list[float] = []
        until = time.perf_counter() + effort.seconds
        while len(times) < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            batch()
            times.append(time.perf_counter() - began)
        rounds.append(median(times))
    return median(rounds)


if __name__ == "__main__":
    main(partition_gpu, seconds=0.05, rounds=9)
