"""The ceilings of compute.py and bulk.py: models run bare, in pinned processes, with nothing around them.

One process a core with all members, like an ensemble hosted `PerDevice`; or one a member and core, like `PerCell`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from configurations import core_device
from models import CLASSES_OUTPUT, member
from numpy.typing import NDArray

from ensemble_runtime.config import TensorSpec
from ensemble_runtime.members.loading import load

# glibc otherwise returns and faults in each large batch's working memory again and again.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}

_TRIES = 3

Predict = Callable[[NDArray[np.float32]], Any]
Loader = Callable[[Path, int], Predict]


def as_torch_does(path: Path, core: int) -> Predict:
    """A TorchScript file, loaded and frozen with torch alone."""
    torch.set_num_threads(1)
    model = torch.jit.freeze(torch.jit.load(str(path)).eval())
    return lambda rows: model(torch.from_numpy(rows)).numpy()


def as_the_runtime_does(path: Path, core: int, spec: TensorSpec) -> Predict:
    """The same through the runtime's loader, with whatever that does to make a model faster."""
    model = load(member(path), path, (spec,), (CLASSES_OUTPUT,), core_device(core))
    return lambda rows: model.predict([rows])


class BareMembers:
    """Pinned processes that each hold all members; each core computes whole rows, so no core ever waits."""

    def __init__(self, pipes: Sequence[Connection], members: int) -> None:
        self._pipes = pipes
        self._members = members

    def best_batches(self, sizes: Sequence[int], seconds: float) -> list[int]:
        """The batch size at which each member alone reaches the most rows/s on all cores."""
        return [self._best_batch(place, sizes, seconds) for place in range(self._members)]

    def _best_batch(self, place: int, sizes: Sequence[int], seconds: float) -> int:
        """The best batch size of one member; each is tried several times in turn, so that a hiccup decides nothing."""
        rates: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(_TRIES):
            for size in sizes:
                batches = [0] * self._members
                batches[place] = size
                rates[size].append(self.rows_per_second(batches, seconds / _TRIES))
        return max(rates, key=lambda size: median(rates[size]))

    def rows_per_second(self, batches: Sequence[int], seconds: float) -> float:
        """Rows/s that pass all members, each at its batch size; a member with 0 is left out."""
        for pipe in self._pipes:
            pipe.send((list(batches), seconds))
        return float(sum(pipe.recv() for pipe in self._pipes))


class BareCells:
    """Pinned processes that each hold one member, all members on each core, which the kernel shares between them."""

    def __init__(self, pipes: Sequence[Sequence[Connection]]) -> None:
        self._pipes = pipes  # by member

    def rows_per_second(self, batches: Sequence[int], rows: int) -> float:
        """Rows/s that pass all members, each at its batch size, until every process has computed so many rows."""
        for pipes, batch in zip(self._pipes, batches, strict=True):
            for pipe in pipes:
                pipe.send((batch, rows))
        spans = [pipe.recv() for pipes in self._pipes for pipe in pipes]
        cores = len(self._pipes[0])
        return cores * rows / (max(end for _, end in spans) - min(begin for begin, _ in spans))


@contextmanager
def bare_members(
    paths: Sequence[Path], loader: Loader, rows: NDArray[np.float32], cores: Sequence[int]
) -> Iterator[BareMembers]:
    """Start a pinned process on each core.

    Args:
        paths: The members' files.
        loader: How each process turns them into functions.
        rows: The input that batches are cut from, one after the other, so that they are not always in the cache; as
            many as a multiple of the largest batch.
        cores: Where.
    """
    with _processes(_work, [(core, list(paths), loader, rows) for core in cores]) as pipes:
        yield BareMembers(pipes, len(paths))


@contextmanager
def bare_cells(
    paths: Sequence[Path], loader: Loader, rows: NDArray[np.float32], cores: Sequence[int]
) -> Iterator[BareCells]:
    """Start a pinned process for each member on each core; see `bare_members`."""
    places = [(core, path, loader, rows) for path in paths for core in cores]
    with _processes(_work_alone, places) as pipes:
        yield BareCells([pipes[i : i + len(cores)] for i in range(0, len(pipes), len(cores))])


@contextmanager
def _processes(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Connection]]:
    """Processes that work until they are sent None, with a pipe to each and a barrier between them."""
    os.environ.update(MALLOC)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(len(arguments))
    pipes, processes = [], []
    for given in arguments:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(*given, theirs, barrier), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for name in MALLOC:
        del os.environ[name]
    try:
        yield pipes
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join(10)


def loaders(spec: TensorSpec) -> dict[str, Loader]:
    """Both ways to run a model bare; the faster is the ceiling."""
    return {"torch's own": as_torch_does, "the runtime's": partial(as_the_runtime_does, spec=spec)}


def _work(
    core: int, paths: list[Path], loader: Loader, rows: NDArray[np.float32], pipe: Connection, barrier: Barrier
) -> None:
    os.sched_setaffinity(0, {core})
    models = [loader(path, core) for path in paths]
    with torch.inference_mode():
        while (task := pipe.recv()) is not None:
            batches, seconds = task
            work = [(model, batch) for model, batch in zip(models, batches, strict=True) if batch]
            for model, batch in work:
                for _ in range(4):  # TorchScript compiles on the second call of a shape
                    model(rows[:batch])
            barrier.wait()
            pipe.send(_rate(work, rows, seconds))


def _work_alone(
    core: int, path: Path, loader: Loader, rows: NDArray[np.float32], pipe: Connection, barrier: Barrier
) -> None:
    os.sched_setaffinity(0, {core})
    model = loader(path, core)
    with torch.inference_mode():
        while (task := pipe.recv()) is not None:
            batch, count = task
            for _ in range(4):
                model(rows[:batch])
            barrier.wait()
            begin = time.perf_counter()
            for done in range(0, count, batch):
                first = done % len(rows)
                model(rows[first : first + batch])
            pipe.send((begin, time.perf_counter()))


def _rate(work: list[tuple[Predict, int]], rows: NDArray[np.float32], seconds: float) -> float:
    """Rows/s of one core: rounds of as many rows as the largest batch, through every member."""
    chunk = max(batch for _, batch in work)
    done, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        offset = done % len(rows)
        for model, batch in work:
            for first in range(offset, offset + chunk, batch):
                model(rows[first : first + batch])
        done += chunk
    return done / passed
