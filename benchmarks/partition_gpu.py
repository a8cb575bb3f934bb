"""Recurrent models on a GPU and one core: against the GPU alone and the core alone, and what leaves the GPU in time."""

from __future__ import annotations

import os
import tempfile
import time
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
from ensemble_runtime.partition.graph import Graph, Placement, parse
from ensemble_runtime.partition.instance import SCARCE
from ensemble_runtime.partition.planning import Choice, Costs, chosen, ways
from ensemble_runtime.partition.schedule import NoScheduleError

SLACK, SAVED, ERROR = 1.5, 0.675, 0.15
ROUNDS = 9
MIB = 2**20
LARGE = [
    Recurrent("LSTM 2048, 4 layers", partial(stacked, "LSTM", 2048, 4, 64), 2048, 4, 64, 1, 4),
    Recurrent("LSTM 1024, 8 layers", partial(stacked, "LSTM", 1024, 8, 64), 1024, 8, 64, 1, 8),
]
HEADER = [
    "model", "steps, rows", "GPU alone", "core alone", "Latency", "error", "off the GPU in 1.5 times its time",
    "takes", "error", "MiB on the GPU, counted", "seen by NVML",
]  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A placement, as it was computed."""

    seconds: float
    gpu_bytes: int
    """By which free memory fell while it was open."""


def partition_gpu(effort: Effort) -> Report:
    """Every model."""
    found = [device for device in discover() if device.kind is DeviceKind.GPU]
    if not found:
        raise RuntimeError("needs a GPU")
    gpu = found[0]
    bind(gpu)
    last = cores()[-1]
    core = Device(name=f"core-{last}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**33, cores=(last,))
    leave_cores(gpu, core)
    rows, errors, saved = [], [], []
    only = os.environ.get("ONLY", "").split(";")
    for model in [*models(), *LARGE]:
        if only != [""] and model.name not in only:
            continue
        progress(model.name)
        row, wrong, share = _row(model, (gpu, core))
        progress(" | ".join(row))
        rows.append(row)
        errors += wrong
        saved.append(share)
    met = sum(share >= SAVED for share in saved)
    least = verdict(median(errors), ERROR, at_most=True)
    rows.append(["median error of predictions", *[""] * 4, f"{median(errors):.1%}", "", "", least, "", ""])
    rows.append([f"at least {SAVED:.1%} off within {SLACK} times", *[""] * 5, f"{met} of {len(saved)}", *[""] * 4])
    return Report(
        f"Each model on one {gpu.type} and one core. GPU alone: ONNX Runtime, its input and output in the host's memory.",
        HEADER,
        rows,
    )


def _row(recurrent: Recurrent, devices: tuple[Device, Device]) -> tuple[list[str], list[float], float]:
    gpu, core = devices
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(recurrent.build(), str(path))
        graph = parse(onnx.load(path), {"x": recurrent.shape})
        there = _whole(path, recurrent, gpu)
        here = _whole(path, recurrent, core, core.cores)
    began = time.perf_counter()
    costs = Costs(devices)
    found = ways(graph, costs)
    latency = chosen(found, Partition(objective=PartitionObjective.LATENCY), costs, chart=False)
    everything, alone = latency.baselines[SCARCE], latency.baselines[SCARCE]
    assert everything is not None and alone is not None
    limit = SLACK * there.seconds
    try:
        wanted = Partition(objective=PartitionObjective.MEMORY, latency_ms=1e3 * limit)
        small: Choice | None = chosen(found, wanted, costs, chart=False).choice
    except NoScheduleError:
        small = None
    progress(f"planned in {time.perf_counter() - began:.1f} s")
    quick = _executed(latency.choice, devices)
    all_there = _executed(everything, devices)
    wrong = [latency.choice.schedule.makespan / quick.seconds - 1]
    predicted_alone = everything.schedule.makespan
    row = [
        recurrent.name,
        f"{recurrent.steps}, {recurrent.rows}",
        f"{1e3 * there.seconds:.2f} ms (bound {1e3 * all_there.seconds:.2f}, predicted {1e3 * predicted_alone:.2f})",
        f"{1e3 * here.seconds:.2f} ms",
        f"{1e3 * quick.seconds:.2f} ms, chunks of {latency.choice.opened.steps}, "
        f"{sum(d == 0 for d in latency.choice.schedule.device)} of {len(latency.choice.schedule.device)} there",
        f"{wrong[0]:+.1%}",
    ]
    counted = everything.schedule.scarce_bytes
    if small is None:
        return [*row, "nothing", "", "", f"{counted / MIB:.1f}", f"{there.gpu_bytes / MIB:.0f}"], wrong, 0.0
    ran = _executed(small, devices)
    wrong.append(small.schedule.makespan / ran.seconds - 1)
    share = 1 - small.schedule.scarce_bytes / counted
    row += [
        f"{share:.1%}",
        f"{1e3 * ran.seconds:.2f} ms ({ran.seconds / there.seconds:.2f} times)",
        f"{wrong[1]:+.1%}",
        f"{counted / MIB:.1f}, then {small.schedule.scarce_bytes / MIB:.1f}",
        f"{there.gpu_bytes / MIB:.0f}, then {ran.gpu_bytes / MIB:.0f}",
    ]
    return row, wrong, share


def _whole(path: Path, recurrent: Recurrent, device: Device, pinned: tuple[int, ...] = ()) -> Ran:
    x_spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=recurrent.shape[1:])
    y_spec = TensorSpec(name="y", datatype=Datatype.FP32, shape=recurrent.output)
    x = np.random.default_rng(0).normal(size=recurrent.shape).astype(np.float32)
    before, free = os.sched_getaffinity(0), _free(device)
    if pinned:
        os.sched_setaffinity(0, pinned)
    try:
        member = Member(name="model", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX))
        model = OnnxModel(member, path, (x_spec,), (y_spec,), device)
        seconds = _seconds(lambda: model.predict([x]))
        return Ran(seconds, free - _free(device))
    finally:
        os.sched_setaffinity(0, before)


def _executed(choice: Choice, devices: tuple[Device, Device]) -> Ran:
    graph: Graph = choice.opened.graph
    placement: Placement = choice.placement
    free = _free(devices[0])
    chance = np.random.default_rng(0)
    given = [chance.normal(size=graph.tensors[x].shape).astype(graph.tensors[x].datatype) for x in graph.inputs]
    with closing(Executor(graph, placement, devices)) as executor:
        seconds = _seconds(lambda: executor.compute(given))
        return Ran(seconds, free - _free(devices[0]))


def _free(device: Device) -> int:
    return find(str(device.uuid)).free_bytes if device.kind is DeviceKind.GPU else 0


def _seconds(batch: object) -> float:
    """The median of some rounds' medians."""
    rounds = []
    for _ in range(ROUNDS):
        times = []
        until = time.perf_counter() + 0.05
        while len(times) < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            batch()  # type: ignore[operator]
            times.append(time.perf_counter() - began)
        rounds.append(median(times))
    return median(rounds)


if __name__ == "__main__":
    main(partition_gpu, seconds=0.05)
