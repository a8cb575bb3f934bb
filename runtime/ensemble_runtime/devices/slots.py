"""From the devices that a plan asks for to those that this process has.

In a cluster nobody can say beforehand which GPU or which cores a pod will get, so that its configuration lists slots:
devices without identity. The i-th slot of a type becomes the i-th device of that type, GPUs in the order of their PCI
bus ids. All devices of a type on a node are alike to the plan, so any such match is as good as any other.

A CPU slot gets cores of its own only where the process has them to itself (the kubelet's static CPU manager, or a
machine without quotas). Under a quota that pays for a part of the cores that the process may run on, other pods run on
the same ones: to pin would crowd everybody onto the lowest. Then a slot only says how many threads it computes with.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ensemble_runtime.config import Device, DeviceKind, core_count
from ensemble_runtime.devices import cgroup
from ensemble_runtime.errors import DeviceUnavailableError

if TYPE_CHECKING:
    from ensemble_runtime.devices.nvidia import Gpu

MIB = 2**20

logger = logging.getLogger(__name__)


def bound(devices: Sequence[Device]) -> tuple[Device, ...]:
    """The devices with all slots filled; those that have an identity are checked and stay as they are.

    Raises:
        DeviceUnavailableError: There are fewer devices than slots, or with less memory than was planned, or a planned
            GPU is not among those that this process has.
    """
    filled = {d.name: d for d in (*_with_gpus(devices), *_with_cores(devices))}
    return tuple(filled.get(device.name, device) for device in devices)


def _with_gpus(devices: Sequence[Device]) -> list[Device]:
    wanted = [device for device in devices if device.kind is DeviceKind.GPU]
    if not wanted:
        return []
    found = _gpus()
    left = list(found)
    taken: dict[str, Gpu] = {}
    for device in sorted(wanted, key=lambda device: device.uuid is None):  # slots take what the others leave
        gpu = _named(device, left) if device.uuid else _first_of_type(device, left)
        if gpu is None:
            have = ", ".join(f"{gpu.uuid} ({gpu.product})" for gpu in found) or "no GPU"
            planned = device.uuid or f"{len(wanted)} GPUs"
            raise DeviceUnavailableError(f"{device.name}: planned {planned}, got {have}")
        if gpu.free_bytes < device.memory_bytes:
            raise DeviceUnavailableError(
                f"{device.name}: planned with {device.memory_bytes // MIB} MiB of memory, "
                f"got {gpu.uuid} with {gpu.free_bytes // MIB} MiB free"
            )
        left.remove(gpu)
        taken[device.name] = gpu
    return [d.model_copy(update={"uuid": taken[d.name].uuid, "pci_bus_id": taken[d.name].pci_bus_id}) for d in wanted]


def _gpus() -> tuple[Gpu, ...]:
    try:
        from ensemble_runtime.devices import nvidia  # imported here: a machine without GPUs needs no NVML bindings
    except ImportError:
        return ()
    return nvidia.gpus()


def _named(device: Device, gpus: Sequence[Gpu]) -> Gpu | None:
    return next((gpu for gpu in gpus if gpu.uuid == device.uuid), None)


def _first_of_type(device: Device, gpus: Sequence[Gpu]) -> Gpu | None:
    alike = next((gpu for gpu in gpus if gpu.product == device.type), None)
    if alike is None and gpus:
        logger.warning(
            "a GPU of another type than was planned",
            extra={"device": device.name, "planned": device.type, "got": gpus[0].product},
        )
    return alike or next(iter(gpus), None)


def _with_cores(devices: Sequence[Device]) -> list[Device]:
    slots = [device for device in devices if device.kind is DeviceKind.CPU and not device.cores]
    if not slots:
        return []
    allowed, quota = sorted(os.sched_getaffinity(0)), cgroup.core_quota()
    wanted, have = sum(core_count(slot.type) for slot in slots), min(float(len(allowed)), quota)
    if wanted > have:
        raise DeviceUnavailableError(f"{_names(slots)}: planned {wanted} cores, got {have:g}")
    promised, left = sum(slot.memory_bytes for slot in slots), cgroup.available_memory()
    if promised > left:
        raise DeviceUnavailableError(
            f"{_names(slots)}: planned with {promised // MIB} MiB of memory, got {left // MIB} MiB"
        )
    if quota < len(allowed):
        return slots
    free = iter(allowed)
    return [slot.model_copy(update={"cores": _next(free, core_count(slot.type))}) for slot in slots]


def _next(cores: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(cores, count))


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(device.name for device in devices)
