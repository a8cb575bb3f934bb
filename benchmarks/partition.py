"""Recurrent models on two cores as two devices, against one core, ONNX Runtime's two threads, and the machine's limit.

The limit is a model's capacity: the speed-up of two independent copies that run at once, one on each core.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
from common import Effort, Report, Rounds, alternate, cores, main, progress
from models import member
from recurrent_models import CLASSES, Recurrent, models

from ensemble_runtime.config import Datatype, Device, DeviceKind, Partition, PartitionObjective, TensorSpec
from ensemble_runtime.members.model import Model
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.model import PartitionedModel, load_partitioned

SHARE, LOSS = 0.8, 1.02
OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(CLASSES,))
HEADER = ["model", "steps, rows", "one core", "two threads", "partitioned", "capacity", "share of it", "verdict"]


def partition(effort: Effort) -> Report:
    """Every model of the list: times of all sides in turn, and what they come to."""
    if len(cores()) < 2:
        raise RuntimeError("needs two cores")
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(model, Path(folder) / "model.onnx", effort) for model in models()]
    met = sum(row[-1].endswith("met") for row in rows)
    rows.append(["all", "", "", "", "", "", "", f"{met} of {len(rows)} met"])
    return Report(
        "Each model as a partitioned member (objective Latency) on two cores, measured and split as at any start; one "
        "core: the whole model there; two threads: ONNX Runtime's own, which spin; capacity: two copies of the model "
        f"at once, one on each core. Ratios are speed-ups over one core, medians of {effort.rounds} alternating rounds "
        f"of {effort.seconds:g} s a side. Stacked and bidirectional models of at least two layers or directions, "
        f"hidden 256 and 64 steps are to reach {SHARE} of the capacity; others at most {LOSS} of the time of one core.",
        HEADER,
        rows,
    )


def _row(recurrent: Recurrent, path: Path, effort: Effort) -> list[str]:
    progress(recurrent.name)
    model = recurrent.build()
    onnx.save(model, str(path))
    x = np.random.default_rng(0).normal(size=recurrent.shape).astype(np.float32)
    times, split = _times(path, recurrent, x, effort)
    capacity, gain = _gain(times, "two copies") * 2, _gain(times, "partitioned")
    share = gain / capacity
    demanding = recurrent.hidden >= 256 and recurrent.steps >= 64 and recurrent.parallel >= 2
    met = share >= SHARE if demanding else gain >= 1 / LOSS
    return [
        recurrent.name,
        f"{recurrent.steps}, {recurrent.rows}",
        f"{median(times['one core']) * 1e3:.2f} ms",
        f"{_gain(times, 'two threads'):.2f}",
        f"{gain:.2f}" if split else f"{gain:.2f} (whole)",
        f"{capacity:.2f}",
        f"{share:.2f}",
        f"{f'share at least {SHARE}' if demanding else f'time at most {LOSS}'}: {'met' if met else 'missed'}",
    ]


def _times(path: Path, recurrent: Recurrent, x: np.ndarray, effort: Effort) -> tuple[dict[str, Rounds], bool]:
    """Seconds of a batch on each side, and whether the partitioned one uses both devices."""
    before = os.sched_getaffinity(0)
    first, second = cores()[:2]
    spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=recurrent.shape[1:])
    wanted = member(path).model_copy(update={"partition": Partition(objective=PartitionObjective.LATENCY)})
    os.sched_setaffinity(0, {first})
    one = OnnxModel(wanted, path, (spec,), (OUTPUT,), _device(first))
    both = load_partitioned(wanted, path, (spec,), (OUTPUT,), (_device(first), _device(second)), recurrent.rows)
    expected = one.predict([x])[0]
    np.testing.assert_allclose(both.predict([x])[0], expected, rtol=1e-4, atol=1e-5)
    os.sched_setaffinity(0, {second})  # the second thread of the pool is born here
    threads, copy = _two_threads(path), OnnxModel(wanted, path, (spec,), (OUTPUT,), _device(second))
    os.sched_setaffinity(0, {first})
    sides: dict[str, Callable[[], float]] = {
        "one core": lambda: _seconds(lambda: one.predict([x]), effort.seconds),
        "two threads": lambda: _seconds(lambda: threads.run(None, {"x": x}), effort.seconds),
        "partitioned": lambda: _seconds(lambda: both.predict([x]), effort.seconds),
        "two copies": lambda: _at_once(one, copy, second, x, effort.seconds),
    }
    try:
        return alternate(sides, effort.rounds), isinstance(both, PartitionedModel)
    finally:
        os.sched_setaffinity(0, before)
        if isinstance(both, PartitionedModel):
            both.close()


def _two_threads(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _seconds(batch: Callable[[], object], seconds: float) -> float:
    """The median time of a batch."""
    found = []
    for _ in range(3):
        batch()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found) < 5:
        started = time.perf_counter()
        batch()
        found.append(time.perf_counter() - started)
    return median(found)


def _at_once(one: Model, copy: Model, core: int, x: np.ndarray, seconds: float) -> float:
    """The median time of a batch while the other core computes batches of its own, the mean of both sides."""
    start, other = threading.Barrier(2), []

    def beside() -> None:
        os.sched_setaffinity(0, {core})
        start.wait()
        other.append(_seconds(lambda: copy.predict([x]), seconds))

    thread = threading.Thread(target=beside)
    thread.start()
    start.wait()
    here = _seconds(lambda: one.predict([x]), seconds)
    thread.join()
    return (here + other[0]) / 2


def _gain(times: dict[str, Rounds], side: str) -> float:
    """How much quicker than one core, the median of the rounds' own ratios."""
    return median(one / found for one, found in zip(times["one core"], times[side], strict=True))


def _device(core: int) -> Device:
    return Device(name=f"core-{core}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**32, cores=(core,))


if __name__ == "__main__":
    main(partition, seconds=0.5)
