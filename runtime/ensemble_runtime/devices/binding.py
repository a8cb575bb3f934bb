"""Ties a prediction process to its one device, before any library can choose another."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ensemble_runtime.config import Device, DeviceKind, core_count
from ensemble_runtime.errors import DeviceUnavailableError

_TOPOLOGY = Path("/sys/devices/system/cpu")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads(device: Device) -> int:
    """Threads that a model on this device computes with: as many as a core set has cores, one beside a GPU."""
    if device.kind is DeviceKind.CPU:
        return len(device.cores) or core_count(device.type)
    return 1


def bind(device: Device) -> str:
    """Bind this process; the first thing that a prediction process does.

    Returns:
        The device that was found, e.g. ``GPU-0e3f... 00000000:65:00.0`` or ``cores 0,1``; ``any 2 cores`` where the
        process shares its cores with others (see `slots`).

    Raises:
        DeviceUnavailableError: the device is not on this machine, or it is too late to bind to it.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads(device))
    match device.kind:
        case DeviceKind.GPU:
            return _bind_gpu(device)
        case DeviceKind.CPU:
            return _bind_cores(device)
        case DeviceKind.SIMULATED:
            return f"simulated {device.type}"


def leave_cores(first: Device, second: Device) -> set[int]:
    """Keep this thread, and those that it starts, off the cores of a partition's second device.

    A process that has a GPU is bound to no core, and spins while it waits for the other one: it must not do so where
    that one computes, nor, if it may run elsewhere, on the other hardware thread of such a core, which it would slow
    down as well. Where it may run nowhere else, it stays. A process that is bound to cores has its own.

    Returns:
        The cores that are left to the second device, which this thread might use before.
    """
    before = os.sched_getaffinity(0)
    if first.kind is not DeviceKind.GPU:
        return set()
    for near in (_hardware_threads(second.cores), set(second.cores)):
        left = before & near
        if left and left != before:
            os.sched_setaffinity(0, before - left)
            return left
    return set()


def _hardware_threads(cores: Iterable[int]) -> set[int]:
    """Some cores with those that the kernel calls their siblings: threads of the same piece of hardware."""
    found = set(cores)
    for core in cores:
        with contextlib.suppress(OSError, ValueError):  # not every kernel tells
            for part in (_TOPOLOGY / f"cpu{core}/topology/thread_siblings_list").read_text().split(","):
                first, _, last = part.partition("-")
                found.update(range(int(first), int(last or first) + 1))
    return found


def take_cores(cores: set[int]) -> None:
    """Let all threads of this process run on these cores as well, which nobody else uses after all."""
    for thread in Path("/proc/self/task").iterdir() if cores else ():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(int(thread.name)) | cores)


def _bind_gpu(device: Device) -> str:
    # CUDA reads the variable once, when it starts; with torch imported it may be too late without any sign of it.
    if "torch" in sys.modules:
        raise DeviceUnavailableError(
            f"{device.name}: torch is imported already; bind the process before it loads a model"
        )
    if device.uuid is None:
        raise DeviceUnavailableError(f"{device.name}: a GPU needs its `uuid` (GPU-... or MIG-...)")
    from ensemble_runtime.devices import nvidia  # imported here: a machine without GPUs needs no NVML bindings

    gpu = nvidia.find(device.uuid)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    return f"{gpu.uuid} {gpu.pci_bus_id}"


def _bind_cores(device: Device) -> str:
    if not device.cores:
        return f"any {threads(device)} cores"
    wanted = set(device.cores)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        raise DeviceUnavailableError(
            f"{device.name}: cannot pin to cores {_listed(wanted)}: {error.strerror}; "
            f"this process may use {_listed(os.sched_getaffinity(0))}"
        ) from error
    # The kernel drops cores that the cpuset forbids and reports success if any is left.
    if (bound := os.sched_getaffinity(0)) != wanted:
        raise DeviceUnavailableError(
            f"{device.name}: cores {_listed(wanted - bound)} are not available; this process may use {_listed(bound)}"
        )
    return f"cores {_listed(wanted)}"


def _listed(cores: set[int]) -> str:
    return ",".join(map(str, sorted(cores)))
