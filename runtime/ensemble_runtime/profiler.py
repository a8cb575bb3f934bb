"""Measures what members cost: seconds of a batch and peak bytes of a cell, by member, device and batch size.

Each (member, device) is measured in a process of its own that is bound to the device, at rising batch sizes, on random
rows; variable dimensions have their maximum length, so that what is measured holds for every request. A batch is what
a cell makes of it: its rows are gathered, the answers checked and written. The core sets beside a measured one compute
the same meanwhile: a profile is of a machine that serves, not of one that is idle.

Other programs may disturb a machine for a while. So every size is looked at several times, each time after all others:
what passes spoils one look at a size, and the median counts. Where the looks still differ, there are more of them.

Bytes are what a cell adds to a process that has imported its libraries: weights, working memory, and the peak of
loading if that is higher. On a CPU that is anonymous memory beyond the baseline, from which cells are forked here as in
serving; on a GPU the fall of the device's free memory, with the CUDA context that each process has of its own, provided
that nothing else uses the device meanwhile.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from ensemble_runtime.config import BatchSize, Device, DeviceKind, Member, Schema, TensorSpec
from ensemble_runtime.errors import ManifestError, OutOfMemoryError
from ensemble_runtime.measuring import Measured, Peers, Subject, at_work
from ensemble_runtime.members.storage import fetch

logger = logging.getLogger(__name__)

LOOKS, MORE_LOOKS = 3, 2
"""So often a batch size is looked at, and so much more often where the looks differ ..."""
ALIKE = 1.1
"""... by more than this factor."""


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
    peers: tuple[Device, ...] = Field(
        (), description="Core sets that serve as well: while a core set is measured, all others of these are kept busy."
    )


def profile(request: ProfileRequest, cache: Path) -> Iterator[dict[str, Any]]:
    """Measure a request.

    Sizes from the first that does not fit into memory are left out, with a warning.

    Yields:
        Progress: ``{"member", "deviceType", "batchSize", "done", "total"}``, batchSize being the next to be measured, 0
            once a member is complete; results: ``{"digest", "deviceType", "precision", "batchSize", "seconds",
            "memoryBytes", "baselineBytes"}``, where the baseline is what memoryBytes leaves out. A size has a result
            after its first look, which may be the last if the next size is too large, and one that replaces it.

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
        # A process that is not forked is sent what it needs; this one holds the lease.
        subject = Subject(member, replace(model, lease=None), request.inputs, request.outputs, sizes[-1])
        for device in request.devices:
            who = {"member": member.name, "deviceType": device.type}
            key = {"digest": model.sha256, "deviceType": device.type, "precision": member.precision.value}
            yield {**who, "batchSize": sizes[0], "done": done, "total": total}
            seen: set[int] = set()
            for record in _records(subject, device, _beside(device, request.peers), sizes):
                yield {**key, **record}
                if record["batchSize"] not in seen and len(seen) < len(sizes) - 1:
                    seen.add(record["batchSize"])
                    yield {**who, "batchSize": sizes[len(seen)], "done": done + len(seen), "total": total}
            done += len(sizes)
            yield {**who, "batchSize": 0, "done": done, "total": total}


def _beside(device: Device, peers: tuple[Device, ...]) -> tuple[Device, ...]:
    """The core sets that share no core with a core set."""
    if device.kind is not DeviceKind.CPU or not device.cores:
        return ()
    return tuple(p for p in peers if p.kind is DeviceKind.CPU and p.cores and not set(p.cores) & set(device.cores))


def _records(
    subject: Subject, device: Device, beside: Sequence[Device], sizes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """A record of each size that fits, at its first look and when it is settled."""
    found: list[dict[str, Any]] = []
    with at_work(subject, device, beside) as (measured, peers):
        for record in _first_looks(measured, peers, sizes):
            found.append(record)
            yield record
        if len(found) == len(sizes):
            yield from _settled(measured, peers, found)
            return
    # The process did not survive the size that is too large.
    with at_work(subject, device, beside) as (measured, peers):
        measured.loaded()
        yield from _settled(measured, peers, found)


def _first_looks(measured: Measured, peers: Peers, sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A record of each size, up to the first that does not fit."""
    memory_bytes, any_fits = measured.loaded(), False
    for size in sizes:
        peers.busy(size, memory_bytes)
        try:
            record = {"batchSize": size, **measured.look(size)}
        except OutOfMemoryError as error:
            if not any_fits:
                raise
            logger.warning("%s; larger batches are not measured", error)
            return
        memory_bytes, any_fits = record["memoryBytes"], True
        yield record


def _settled(measured: Measured, peers: Peers, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their seconds settled; none where memory runs out meanwhile."""
    seconds = {record["batchSize"]: [float(record["seconds"])] for record in found}
    memory_bytes = found[-1]["memoryBytes"]

    def look_at(sizes: list[int]) -> None:
        for size in sizes:
            peers.busy(size, memory_bytes)
            seconds[size].append(measured.look(size)["seconds"])

    try:
        for _ in range(LOOKS - 1):
            look_at(list(seconds))
        differ = [size for size, looks in seconds.items() if max(looks) > ALIKE * min(looks)]
        for _ in range(MORE_LOOKS):
            look_at(differ)
    except OutOfMemoryError as error:
        logger.warning("%s; it is not measured again", error)
        return []
    return [{**record, "seconds": statistics.median(seconds[record["batchSize"]])} for record in found]
