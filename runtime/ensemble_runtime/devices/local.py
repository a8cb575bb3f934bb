"""Finds the devices of this machine: GPUs and MIG instances, and sets of CPU cores."""

from __future__ import annotations

import os

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.devices import cgroup
from ensemble_runtime.errors import DeviceUnavailableError

GPU_RESERVE_BYTES = 512 * 2**20
"""Left free on each GPU: the driver's own needs and fragmentation. CUDA contexts count as part of the cells."""
CPU_RESERVE_BYTES = 2**30
"""Left free of main memory, at most a quarter: the arena, and the interpreter and libraries that all cells share."""


def discover(
    cores_per_device: int | None = 1,
    gpu_reserve_bytes: int = GPU_RESERVE_BYTES,
    cpu_reserve_bytes: int = CPU_RESERVE_BYTES,
) -> tuple[Device, ...]:
    """All devices that this process may use: gpu0, gpu1, ... by PCI bus id, then cpu0, cpu1, ... by core.

    Args:
        cores_per_device: Cores of a CPU device; cores that do not fill one are left over for the other processes.
            None, or more than there are: one device of all cores.
        gpu_reserve_bytes: Kept back from the free memory of each GPU.
        cpu_reserve_bytes: Kept back from the available memory, at most a quarter of it; CPU devices share the rest.

    Raises:
        DeviceUnavailableError: the NVIDIA driver is there, but broken.
    """
    if cores_per_device is not None and cores_per_device < 1:
        raise DeviceUnavailableError(f"cores per device: {cores_per_device}, expected at least 1")
    return (*_gpus(gpu_reserve_bytes), *_core_sets(cores_per_device, cpu_reserve_bytes))


def _gpus(reserve: int) -> list[Device]:
    try:
        from ensemble_runtime.devices import nvidia  # imported here: the bindings are optional
    except ImportError:
        return []
    return [
        Device(
            name=f"gpu{i}",
            kind=DeviceKind.GPU,
            type=gpu.product,
            memory_bytes=gpu.free_bytes - reserve,
            uuid=gpu.uuid,
        )
        for i, gpu in enumerate(nvidia.gpus())
        if gpu.free_bytes > reserve
    ]


def _core_sets(size: int | None, reserve: int) -> list[Device]:
    cores = usable_cores()
    size = min(size or len(cores), len(cores))
    available = cgroup.available_memory()
    share = (available - min(reserve, available // 4)) * size // len(cores)
    return [
        Device(
            name=f"cpu{i}",
            kind=DeviceKind.CPU,
            type=f"cpu-{size}",
            memory_bytes=max(1, share),
            cores=tuple(cores[i * size : (i + 1) * size]),
        )
        for i in range(len(cores) // size)
    ]


def usable_cores() -> list[int]:
    """Cores that this process may run on, as many as its quota of processor time pays for; at least one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[: max(1, int(min(len(cores), cgroup.core_quota())))]
