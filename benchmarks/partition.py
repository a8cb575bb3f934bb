"""Recurrent stacks on two cores as two devices, against one core, ONNX Runtime's two threads, and the machine's limit.

The limit is a model's capacity: the speed-up of two independent copies that run at once, one on each core. Models with
more than one direction, decoder or branch are in `partition_wide.py`.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from common import Effort, Report, Rounds, alternate, cores, main, progress
from models import member
from recurrent_models import Recurrent, stacks

from ensemble_runtime.config import Datatype, Device, DeviceKind, Partition, PartitionObjective, TensorSpec
from ensemble_runtime.members.model import Model
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.model import PartitionedModel, split
from ensemble_runtime.partition.together import together

SHARE, LOSS = 0.8, 1.02
STARTS = 3
"""Processes in which a model is loaded and timed anew: which pages one gets moves a side's time by some percent, and
no number of rounds in one process tells."""
HEADER = ["model", "steps, rows", "one core", "by operators", "by threads", "capacity", "share of it", "verdict"]


@dataclass(frozen=True)
class Start:
    """What one process found: seconds on one core, and speed-ups over it."""

    seconds: float
    operators: float
    threads: float
    capacity: float
    whole: bool
    """Whether what was to be split was left whole."""

    @property
    def share(self) -> float:
        """Of the capacity, by whichever is quicker."""
        return max(self.operators, self.threads) / self.capacity


def partition(effort: Effort) -> Report:
    """Every stack of the list: times of all sides in turn, and what they come to."""
    return measured(stacks(), effort)


def measured(models: list[Recurrent], effort: Effort) -> Report:
    """A table of some models."""
    if len(cores()) < 2:
        raise RuntimeError("needs two cores")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        rows = []
        for model in models:
            progress(model.name)
            rows.append(_row(model, [processes.submit(_start, model, effort).result() for _ in range(STARTS)]))
    met = [row[-1] for row in rows if "missed" not in row[-1]]
    threads = sum("threads" in verdict for verdict in met)
    rows.append(["all", "", "", "", "", "", "", f"{len(met)} of {len(rows)} met, {threads} of them by threads alone"])
    return Report(
        "Each model as a partitioned member (objective Latency) on two cores, measured and split as at any start. By "
        "operators: as it was split, (whole) where that was not quicker; by threads: ONNX Runtime's own, one a core, "
        "which spin; a member is served by whichever is quicker. One core: the whole model there; capacity: two copies "
        f"of it at once, one on each core. Ratios are speed-ups over one core: of {effort.rounds} alternating rounds "
        f"of {effort.seconds:g} s a side the median, and of {STARTS} such starts, each in a process of its own, the "
        "median again, for a time depends by some percent on the pages that a process gets; in brackets the least "
        "and the largest share. Stacked and bidirectional models of at least two layers or directions, hidden 256 "
        f"and 64 steps are to reach {SHARE} of the capacity; others at most {LOSS} of the time of one core.",
        HEADER,
        rows,
    )


def _row(recurrent: Recurrent, starts: list[Start]) -> list[str]:
    operators, threads = median(x.operators for x in starts), median(x.threads for x in starts)
    shares, capacity = sorted(x.share for x in starts), median(x.capacity for x in starts)
    demanding = recurrent.hidden >= 256 and recurrent.steps >= 64 and recurrent.parallel >= 2
    least = SHARE * capacity if demanding else 1 / LOSS
    reached = median(shares) >= SHARE if demanding else max(operators, threads) >= least
    by = "missed" if not reached else "met" if operators >= least else "met by threads"
    left = sum(x.whole for x in starts)
    return [
        recurrent.name,
        f"{recurrent.steps}, {recurrent.rows}",
        f"{median(x.seconds for x in starts) * 1e3:.2f} ms",
        f"{operators:.2f}" + (f" ({left} of {STARTS} whole)" if left else ""),
        f"{threads:.2f}",
        f"{capacity:.2f}",
        f"{median(shares):.3f} ({shares[0]:.2f} to {shares[-1]:.2f})",
        f"{f'share at least {SHARE}' if demanding else f'time at most {LOSS}'}: {by}",
    ]


def _start(recurrent: Recurrent, effort: Effort) -> Start:
    """Load a model on each side and time it."""
    x = np.random.default_rng(0).normal(size=recurrent.shape).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(recurrent.build(), str(path))
        times, whole = _times(path, recurrent, x, effort)
    operators, threads, copies = (_gain(times, side) for side in ("by operators", "by threads", "two copies"))
    return Start(median(times["one core"]), operators, threads, 2 * copies, whole)


def _times(path: Path, recurrent: Recurrent, x: np.ndarray, effort: Effort) -> tuple[dict[str, Rounds], bool]:
    """Seconds of a batch on each side, and whether what was to be split was left whole."""
    before = os.sched_getaffinity(0)
    first, second = cores()[:2]
    x_spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=recurrent.shape[1:])
    y_spec = TensorSpec(name="y", datatype=Datatype.FP32, shape=recurrent.output)
    wanted = member(path).model_copy(update={"partition": Partition(objective=PartitionObjective.LATENCY)})
    os.sched_setaffinity(0, {first})
    one = OnnxModel(wanted, path, (x_spec,), (y_spec,), _device(first))
    devices = _device(first), _device(second)
    both = split(wanted, path, (x_spec,), (y_spec,), devices, recurrent.rows)
    expected = one.predict([x])[0]
    np.testing.assert_allclose(both.predict([x])[0], expected, rtol=1e-4, atol=1e-5)
    threads = together(wanted, path, (x_spec,), (y_spec,), devices)
    copy = OnnxModel(wanted, path, (x_spec,), (y_spec,), devices[1])
    sides: dict[str, Callable[[], float]] = {
        "one core": lambda: _seconds(lambda: one.predict([x]), effort.seconds),
        "by operators": lambda: _seconds(lambda: both.predict([x]), effort.seconds),
        "by threads": lambda: _seconds(lambda: threads.predict([x]), effort.seconds),
        "two copies": lambda: _at_once(one, copy, second, x, effort.seconds),
    }
    try:
        return alternate(sides, effort.rounds), not isinstance(both, PartitionedModel)
    finally:
        os.sched_setaffinity(0, before)
        if isinstance(both, PartitionedModel):
            both.close()


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
    main(partition, seconds=0.25)
