"""Members in processes of their own, each bound to a device, that compute when they are told to: to be measured there.

As in serving: on a CPU they are forked from a process that has imported the model libraries, and all end with it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from ensemble_runtime.config import Device, DeviceKind, Member, TensorSpec
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.devices.cgroup import available_memory
from ensemble_runtime.devices.working_memory import keep_memory
from ensemble_runtime.errors import EnsembleError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.members.loading import libraries, load
from ensemble_runtime.members.rows import MadeUpRows
from ensemble_runtime.members.storage import FetchedModel, to_parse

logger = logging.getLogger(__name__)

MIN_RUNS, MIN_SECONDS = 4, 0.1
"""In one look a batch is run at least so often and for so long ..."""
MAX_RUNS, MAX_SECONDS = 4_000, 3.5
"""... and no more than this, but at least once."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A member with its file, and the largest batch that it will compute."""

    member: Member
    model: FetchedModel
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    largest: int


class Measured:
    """A member in a process of its own on a device, which ends with this process."""

    def __init__(self, subject: Subject, device: Device) -> None:
        self.device = device
        self._name = subject.member.name
        if device.kind is DeviceKind.CPU:
            # Imported here once, for all to share by forking; CUDA, which does not survive a fork, starts afresh.
            import_libraries(subject.member)
        context: Any = multiprocessing.get_context("fork" if device.kind is DeviceKind.CPU else "spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_process, args=(theirs, subject, device), daemon=True)
        self._process.start()
        theirs.close()

    def loaded(self) -> int:
        """Bytes that the loaded model holds.

        Raises:
            EnsembleError: It cannot be loaded, or not on this device.
        """
        return int(self._answer("loading"))

    def look(self, size: int) -> dict[str, Any]:
        """Measure a batch size once: ``{"seconds", "memoryBytes", "baselineBytes"}``, seconds being a mean.

        Raises:
            EnsembleError: The model fails; OutOfMemoryError where the process does not survive it.
        """
        self._send((size, True))
        record: dict[str, Any] = self._answer(f"batch size {size}")
        return record

    def start(self, size: int) -> None:
        """Compute batches of a size until the next word."""
        self._send((size, False))

    def started(self) -> None:
        """Wait until it does.

        Raises:
            EnsembleError: It does not.
        """
        self._answer("keeping a device busy")

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _send(self, task: tuple[int, bool]) -> None:
        with contextlib.suppress(OSError):  # a process that has ended is told of by its answer
            self._pipe.send(task)

    def _answer(self, doing: str) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            where = f"member '{self._name}' on {self.device.name}, {doing}"
            if self._process.exitcode == -9:
                raise OutOfMemoryError(
                    f"{where}: the measuring process was killed, most likely for lack of memory"
                ) from None
            raise ModelInvalidError(
                f"{where}: the measuring process ended with exit code {self._process.exitcode}"
            ) from None
        if isinstance(answer, EnsembleError):
            raise answer
        return answer


class Peers:
    """A member on further core sets, which it keeps busy while it is measured on one, as they are in serving.

    Beside a busy core a core is slower: they share the clock's budget, caches, memory bandwidth, at times a pipeline.
    """

    def __init__(self, subject: Subject, devices: Sequence[Device]) -> None:
        self._subject, self._devices = subject, devices
        self._running: list[Measured] | None = None

    def busy(self, size: int, memory_bytes: int) -> None:
        """Let all of them compute batches of a size; those that cannot are left out.

        Args:
            size: Rows of a batch.
            memory_bytes: What the member was last seen to hold. Twice that must be there for each: members are measured
                that are too large for their device, too.
        """
        if self._running is None:
            self._running = []
            if self._room_for(len(self._devices), memory_bytes):
                self._running = [Measured(self._subject, device) for device in self._devices]
                self._keep(Measured.loaded)
        if self._running and not self._room_for(len(self._running), memory_bytes):
            self.end()
        for peer in self._running:
            peer.start(size)
        self._keep(Measured.started)

    def end(self) -> None:
        """Kill them all."""
        for peer in self._running or ():
            peer.end()
        self._running = []

    def _room_for(self, count: int, memory_bytes: int) -> bool:
        return count * memory_bytes <= available_memory() // 2

    def _keep(self, step: Callable[[Measured], object]) -> None:
        for peer in list(self._running or ()):
            try:
                step(peer)
            except EnsembleError as error:
                logger.warning("measured without a load on %s: %s", peer.device.name, error)
                peer.end()
                assert self._running is not None
                self._running.remove(peer)


@contextlib.contextmanager
def at_work(subject: Subject, device: Device, beside: Sequence[Device]) -> Iterator[tuple[Measured, Peers]]:
    """A member on a device and on those beside it; all processes end with the context."""
    measured, peers = Measured(subject, device), Peers(subject, beside)
    try:
        yield measured, peers
    finally:
        peers.end()
        measured.end()


def _process(pipe: Connection, subject: Subject, device: Device) -> None:
    """Load, then do what the pipe says: (batch size, whether to measure it, or else to compute until the next word)."""
    os.dup2(2, 1)  # what libraries print must not get between the records of the command
    threading.Thread(target=end_with_parent, daemon=True).start()
    name = subject.member.name
    try:
        keep_memory()  # as in serving: a batch that faults its memory in again takes a fifth longer
        bind(device)
        import_libraries(subject.member)
        meter: _Meter = GpuMeter(device) if device.kind is DeviceKind.GPU else _CpuMeter()
        model = load(subject.member, to_parse(subject.model), subject.inputs, subject.outputs, device)
        rows = MadeUpRows(name, model, subject.inputs, subject.outputs, subject.largest)
        pipe.send(meter.peak_bytes())
        while True:
            size, measure = pipe.recv()
            compute = rows.batch(size)
            if measure:
                seconds = _mean_seconds(compute)
                found = {"memoryBytes": meter.peak_bytes(), "baselineBytes": meter.baseline_bytes}
                pipe.send({"seconds": seconds, **found})
                continue
            pipe.send(size)
            while not pipe.poll():
                compute()
    except EnsembleError as error:
        pipe.send(error)
    except Exception as error:  # a model may raise anything
        pipe.send(failure(error, f"member '{name}' on {device.name}: {first_line(error)}"))


def _mean_seconds(compute: Callable[[], object]) -> float:
    """Of a batch. The mean, since a rate is made of all batches, the slow ones as well."""
    start, runs = time.perf_counter(), 0
    while True:
        compute()
        runs, spent = runs + 1, time.perf_counter() - start
        if (runs >= MIN_RUNS and spent >= MIN_SECONDS) or runs >= MAX_RUNS or spent >= MAX_SECONDS:
            return spent / runs


class _Meter(Protocol):
    baseline_bytes: int

    def peak_bytes(self) -> int: ...


class _CpuMeter:
    """Anonymous memory of this process beyond what it had at first, at its highest."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # where it is forbidden, the peak of the imports counts as well
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
        self.baseline_bytes = memory_of()["RssAnon"]

    def peak_bytes(self) -> int:
        now = memory_of()
        return now["RssAnon"] + max(0, now["VmHWM"] - now["VmRSS"]) - self.baseline_bytes


class GpuMeter:
    """By how much a device's free memory has fallen; the allocators of torch and ONNX Runtime hold on to their peak."""

    baseline_bytes = 0

    def __init__(self, device: Device) -> None:
        self._uuid = str(device.uuid)
        self._before = self._free_bytes()

    def peak_bytes(self) -> int:
        """Bytes of the fall since this was made."""
        return max(0, self._before - self._free_bytes())

    def _free_bytes(self) -> int:
        from ensemble_runtime.devices import nvidia  # here: the bindings are optional

        return nvidia.find(self._uuid).free_bytes


def memory_of(process: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PROCESS/status, in bytes.

    Raises:
        OSError: There is no such process any more.
    """
    sizes = {}
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes


def import_libraries(member: Member) -> None:
    """Import what the member's format needs; one that is missing is told of by loading."""
    for module in libraries([member.model.format]):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def end_with_parent() -> None:
    """Wait for the parent's end, then end this process; for a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
