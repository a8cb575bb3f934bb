"""A whole model on two sets of cores at once: ONNX Runtime's own threads share the work of every operator.

They look for each other's work as `gates` do, and no Python is between: so even a step of 10 us can be halved. It is
how a layer of any kind is opened by gates where both devices are cores. Each core reads half of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_runtime.config import Device, DeviceKind, Member, TensorSpec
from ensemble_runtime.members.onnx_model import OnnxModel

Devices = tuple[Device, Device]


def able(devices: Devices) -> bool:
    """Whether both devices are cores of their own: threads that wait for each other must not wait for others."""
    return all(device.kind is DeviceKind.CPU and device.cores for device in devices)


def joined(devices: Devices) -> Device:
    """The cores of both as one device."""
    first, second = devices
    cores = (*first.cores, *second.cores)
    return Device(
        name=f"{first.name}-{second.name}",
        kind=DeviceKind.CPU,
        type=f"cpu-{len(cores)}",
        memory_bytes=first.memory_bytes + second.memory_bytes,
        cores=cores,
    )


@contextmanager
def threads_on(device: Device) -> Iterator[None]:
    """Have the threads that are born meanwhile on all cores but the first, which is the caller's."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, device.cores[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def together(
    member: Member, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], devices: Devices
) -> OnnxModel:
    """Load a model on both devices; see `members.loading.load`. The caller's thread is the first of them.

    Raises:
        ModelInvalidError: As of `members.loading.load`.
    """
    both = joined(devices)
    with threads_on(both):
        return OnnxModel(member, path, inputs, outputs, both, spins=True)
