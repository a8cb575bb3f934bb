"""Measures what members cost: median seconds of a batch and peak bytes of a cell, by member, device and batch size.

Each (member, device) is measured in a process of its own that is bound to the device, at rising batch sizes, on random
rows; variable dimensions have their maximum length, so that what is measured holds for every request.

Bytes are what a cell adds to a process that has imported its libraries: weights, working memory, and the peak of
loading if that is higher. On a CPU that is anonymous memory beyond the baseline, from which cells are forked here as in
serving; on a GPU the fall of the device's free memory, with the CUDA context that each process has of its own, provided
that nothing else uses the device meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from ensemble_runtime.config import BatchSize, Device, DeviceKind, Member, Schema, TensorSpec
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.devices.working_memory import keep_memory
from ensemble_runtime.errors import EnsembleError, ManifestError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import first_line, random_rows, warm_up
from ensemble_runtime.members.loading import libraries, load
from ensemble_runtime.members.model import Array, Model
from ensemble_runtime.members.storage import fetch

logger = logging.getLogger(__name__)

MIN_RUNS, MIN_SECONDS = 10, 0.25
"""A batch size is run at least so often and for so long ..."""
MAX_RUNS, MAX_SECONDS = 10_000, 10.0
"""... and no more than this, but at least three times."""


class FetchRequest(Schema):
    """Whose models to fetch; a whole profile request will do as well."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    members: tuple[Member, ...] = Field(min_length=1)


class ProfileRequest(Schema):
    """What to measure: every member on every device at every batch size."""

    members: tuple[Member, ...] = Field(min_length=1)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    devices: tuple[Device, ...] = Field(min_length=1, description="One of each type.")
    batch_sizes: tuple[BatchSize, ...] = Field(min_length=1)


def profile(request: ProfileRequest, cache: Path) -> Iterator[dict[str, Any]]:
    """Measure a request.

    Sizes from the first that does not fit into memory are left out, with a warning.

    Yields:
        Progress: ``{"member", "deviceType", "batchSize", "done", "total"}``, batchSize being the next to be measured, 0
            once a member is complete; results: ``{"digest", "deviceType", "precision", "batchSize", "seconds",
            "memoryBytes", "baselineBytes"}``, where the baseline is what memoryBytes leaves out.

    Raises:
        EnsembleError: a model or a device cannot be used, or not even the smallest batch fits.
    """
    for device in request.devices:
        if device.kind is DeviceKind.SIMULATED:
            raise ManifestError(f"devices[{device.name}]: nothing to measure, a simulated device states its seconds")
    sizes = tuple(sorted(set(request.batch_sizes)))
    total = len(request.members) * len(request.devices) * len(sizes)
    done = 0
    for member in request.members:
        model = fetch(member.model, cache)
        for device in request.devices:
            who = {"member": member.name, "deviceType": device.type}
            yield {**who, "batchSize": sizes[0], "done": done, "total": total}
            key = {"digest": model.sha256, "deviceType": device.type, "precision": member.precision.value}
            for index, result in enumerate(_measured_apart(request, member, model.path, device, sizes), start=1):
                yield {**key, **result}
                following = sizes[index] if index < len(sizes) else 0
                yield {**who, "batchSize": following, "done": done + index, "total": total}
            done += len(sizes)


def _measured_apart(
    request: ProfileRequest, member: Member, path: Path, device: Device, sizes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Measure one member on one device in a process of its own, which ends when this one does."""
    if device.kind is DeviceKind.CPU:
        # Imported here once, for all members to share by forking; CUDA, which does not survive a fork, starts afresh.
        import_libraries(member)
    method = "fork" if device.kind is DeviceKind.CPU else "spawn"
    context: Any = multiprocessing.get_context(method)
    records, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_measuring_process, args=(sender, request, member, path, device, sizes), daemon=True
    )
    process.start()
    sender.close()
    measured = 0
    try:
        while True:
            record = _received(records)
            if record is None and measured == len(sizes):
                return
            failure = _failure(record, process, member, device, sizes[min(measured, len(sizes) - 1)])
            if failure is None:
                measured += 1
                yield record
            elif isinstance(failure, OutOfMemoryError) and measured:
                logger.warning("%s; larger batches are not measured", failure)
                return
            else:
                raise failure
    finally:
        process.kill()
        process.join()
        records.close()


def _received(records: Connection) -> Any:
    """The next record; None at the end."""
    try:
        return records.recv()
    except (EOFError, ConnectionResetError):
        return None


def _failure(record: Any, process: Any, member: Member, device: Device, size: int) -> EnsembleError | None:
    """What went wrong, if the record tells of an error or the process ended early."""
    if isinstance(record, EnsembleError):
        return record
    if record is not None:
        return None
    process.join()
    where = f"member '{member.name}' on {device.name}, batch size {size}"
    if process.exitcode == -9:
        return OutOfMemoryError(f"{where}: the measuring process was killed, most likely for lack of memory")
    return ModelInvalidError(f"{where}: the measuring process ended with exit code {process.exitcode}")


def _measuring_process(
    sender: Connection, request: ProfileRequest, member: Member, path: Path, device: Device, sizes: tuple[int, ...]
) -> None:
    """Send a record for each size, or an error."""
    os.dup2(2, 1)  # what libraries print must not get between the records of the command
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        for record in _measurements(request, member, path, device, sizes):
            sender.send(record)
    except EnsembleError as error:
        sender.send(error)
    except Exception as error:
        kind = OutOfMemoryError if _lacks_memory(error) else ModelInvalidError
        sender.send(kind(f"member '{member.name}' on {device.name}: {first_line(error)}"))


def _measurements(
    request: ProfileRequest, member: Member, path: Path, device: Device, sizes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    keep_memory()  # as in serving: a batch that faults its memory in again takes a fifth longer
    bind(device)
    import_libraries(member)
    meter: _Meter = _GpuMeter(device) if device.kind is DeviceKind.GPU else _CpuMeter()
    model = load(member, path, request.inputs, request.outputs, device)
    random = np.random.default_rng(0)
    for size in sizes:
        warm_up(member.name, model, request.inputs, request.outputs, size)
        batch = [random_rows(spec, size, spec.max_length, random) for spec in request.inputs]
        for _ in range(2):
            model.predict(batch)
        seconds = _median_seconds(model, batch)
        yield {
            "batchSize": size,
            "seconds": seconds,
            "memoryBytes": meter.peak_bytes(),
            "baselineBytes": meter.baseline_bytes,
        }


def _median_seconds(model: Model, batch: list[Array]) -> float:
    seconds: list[float] = []
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        model.predict(batch)
        after = time.perf_counter()
        seconds.append(after - before)
        runs, spent = len(seconds), after - start
        if (runs >= MIN_RUNS and spent >= MIN_SECONDS) or runs >= MAX_RUNS or (runs >= 3 and spent >= MAX_SECONDS):
            return statistics.median(seconds)


class _Meter(Protocol):
    baseline_bytes: int

    def peak_bytes(self) -> int: ...


class _CpuMeter:
    """Anonymous memory of this process beyond what it had at first, at its highest."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # where it is forbidden, the peak of the imports counts as well
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
        self.baseline_bytes = _status()["RssAnon"]

    def peak_bytes(self) -> int:
        now = _status()
        return now["RssAnon"] + max(0, now["VmHWM"] - now["VmRSS"]) - self.baseline_bytes


class _GpuMeter:
    """By how much a device's free memory has fallen; the allocators of torch and ONNX Runtime hold on to their peak."""

    baseline_bytes = 0

    def __init__(self, device: Device) -> None:
        self._uuid = str(device.uuid)
        self._before = self._free_bytes()

    def peak_bytes(self) -> int:
        return max(0, self._before - self._free_bytes())

    def _free_bytes(self) -> int:
        from ensemble_runtime.devices import nvidia  # here: the bindings are optional

        return nvidia.find(self._uuid).free_bytes


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes."""
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
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


def _lacks_memory(error: Exception) -> bool:
    """Whether an exception tells of lacking memory; torch and ONNX Runtime have no common class for it."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(
        phrase in text
        for phrase in ("out of memory", "outofmemory", "can't allocate memory", "failed to allocate memory")
    )
