"""The pipeline's parts in one thread: a loop with a clock of its own, cells that can die between any two writes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.pipeline.arena import Arena, Ring
from ensemble_runtime.pipeline.batching import Batcher
from ensemble_runtime.pipeline.intake import Entries, Intake
from ensemble_runtime.pipeline.wiring import Wiring


def make_config(**changes: Any) -> RuntimeConfig:
    """Three members a, b, c on simulated devices; a has two cells of different batch sizes."""
    members = changes.pop("members", ["a", "b", "c"])
    cells = changes.pop("cells", [("s0", "a", 2), ("s1", "a", 3), ("s1", "b", 4), ("s2", "c", 2)])
    model = {"uri": "file:///none", "format": "ONNX"}
    return RuntimeConfig.model_validate(
        {
            "name": "sim",
            "members": [{"name": m, "model": model} if isinstance(m, str) else {"model": model, **m} for m in members],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
            "combination": {"rule": "Mean", "predictions": "Values"},
            "devices": [{"name": f"s{i}", "kind": "Simulated", "type": "sim", "memoryBytes": 1} for i in range(3)],
            "cells": [{"device": d, "member": m, "batchSize": b} for d, m, b in cells],
            **changes,
        }
    )


class SteppedLoop:
    """What the batcher needs of an event loop, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self._soon: list[Callable[[], object]] = []
        self._timers: list[_Timer] = []
        self._readers: dict[int, Callable[[], object]] = {}

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(self.now + delay, callback)
        self._timers.append(timer)
        return timer

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        self._readers[fd] = callback

    def close(self) -> None:
        """Let go of all callbacks, and with them of the arena: the mapping ends when nobody refers to it."""
        self._soon.clear()
        self._timers.clear()
        self._readers.clear()

    def run_soon(self) -> bool:
        """What was left for the next turn of the loop."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return bool(soon)

    def read(self) -> bool:
        """Readers whose descriptors have something."""
        ready = [reader for fd, reader in self._readers.items() if rung(fd)]
        for reader in ready:
            reader()
        return bool(ready)

    def advance(self, seconds: float) -> None:
        """Let time pass, and the timers that are due with it, behind what was left for the loop's next turn."""
        until = self.now + seconds
        self.run_soon()
        while due := [timer for timer in self._timers if not timer.cancelled and timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self._timers.remove(first)
            self.now = max(self.now, first.at)
            first.callback()
        self.now = until


@dataclass(eq=False)
class _Timer:
    at: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


def rung(doorbell: int) -> bool:
    """Whether somebody who sleeps on this doorbell would wake."""
    poll = select.poll()
    poll.register(doorbell, select.POLLIN)
    return bool(poll.poll(0))


class DiedError(Exception):
    """Stands for the end of a process between two of its instructions."""


@dataclass
class Fuse:
    """Counts a process's writes to shared memory and ends it before the one that is wanted."""

    writes_left: int | None = None

    def write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise DiedError
            self.writes_left -= 1


@dataclass
class MortalWords:
    """Words of the arena behind a fuse."""

    words: memoryview
    fuse: Fuse

    def __getitem__(self, index: int) -> int:
        return int(self.words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.fuse.write()
        self.words[index] = value


class MortalRing(Ring):
    """A ring whose head and tail are behind a fuse."""

    __slots__ = ()

    @staticmethod
    def around(ring: Ring, fuse: Fuse) -> MortalRing:
        return MortalRing(MortalWords(ring._ends, fuse), ring._entries, len(ring.table))  # type: ignore[arg-type]


@dataclass
class MortalCell:
    """A cell's intake, which can die between any two of its writes."""

    arena: Arena
    cell: int
    intake: Intake = field(init=False)
    fuse: Fuse = field(default_factory=Fuse)

    def __post_init__(self) -> None:
        self.intake = intake = Intake(self.arena, self.cell)
        journal = intake._journal
        intake._rings = [MortalRing.around(ring, self.fuse) for ring in intake._rings]
        intake._reports = MortalRing.around(intake._reports, self.fuse)
        intake._journal = type(journal)(MortalWords(journal.words, self.fuse), journal.entries)  # type: ignore[arg-type]

    def take(self, die_before_write: int | None = None) -> Entries | None:
        """Take as the cell does; DiedError leaves everything as a killed process does, the lock's owner included."""
        self.fuse.writes_left = die_before_write
        try:
            count = self.intake.take()
            return self.intake.entries(count) if count else None
        except DiedError:
            shared = len(self.arena.config.cells_of(self.arena.config.cells[self.cell].member)) > 1
            if shared:
                self.arena.lock_owner[self.intake.member] = self.cell + 1
            raise
        finally:
            self.fuse.writes_left = None

    def report(self, entries: Entries, die_before_write: int | None = None) -> None:
        """Report as the cell does."""
        self.fuse.writes_left = die_before_write
        try:
            self.intake.report(entries)
        finally:
            self.fuse.writes_left = None


@contextmanager
def mortal(batcher: Batcher, die_before_write: int) -> Iterator[None]:
    """A gateway that dies before one of the writes by which it sends requests to the members."""
    fuse, arena = Fuse(die_before_write), batcher._arena
    table, sending, queues = batcher._table, batcher._sending, arena.queues
    batcher._table = [MortalWords(words, fuse) for words in table]  # type: ignore[misc]
    batcher._sending = MortalWords(sending, fuse)  # type: ignore[assignment]
    arena.queues = [[MortalRing.around(ring, fuse) for ring in rings] for rings in queues]  # type: ignore[misc]
    try:
        yield
    finally:
        batcher._table, batcher._sending, arena.queues = table, sending, queues


@contextmanager
def arena_of(config: RuntimeConfig) -> Iterator[tuple[Arena, Wiring]]:
    """An arena with its doorbells, closed at the end."""
    arena = Arena.create(config)
    wiring = Wiring.lay(len(arena.geometry.processes))
    try:
        yield arena, wiring
    finally:
        for fd in (arena.fd, *wiring.workers, *wiring.turns, wiring.combiner, wiring.gateway, wiring.sequence):
            os.close(fd)


def push(ring: Ring, entries: list[tuple[int, int, int, int]]) -> None:
    """Append entries to a ring."""
    ring.push(np.array(entries, np.uint32).tobytes())


@dataclass(frozen=True)
class Bench:
    """The helpers above, for tests that cannot import them."""

    make_config = staticmethod(make_config)
    arena_of = staticmethod(arena_of)
    push = staticmethod(push)
    mortal = staticmethod(mortal)
    rung = staticmethod(rung)
    SteppedLoop = SteppedLoop
    MortalCell = MortalCell
    DiedError = DiedError


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()
