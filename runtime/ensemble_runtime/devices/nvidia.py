"""NVIDIA GPUs and MIG instances, as NVML tells of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from ensemble_runtime.errors import DeviceUnavailableError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A whole GPU, or one MIG instance of one."""

    uuid: str
    """GPU-... or MIG-..., as CUDA_VISIBLE_DEVICES takes it."""
    product: str
    """Normalised as GPU feature discovery labels nodes, e.g. NVIDIA-A100-SXM4-40GB."""
    pci_bus_id: str
    """Of the physical GPU, e.g. 00000000:65:00.0."""
    free_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """All usable devices by PCI bus id; a GPU in MIG mode counts as its instances. Empty where NVML is missing.

    Raises:
        DeviceUnavailableError: NVML is there but fails: a broken driver is not a machine without GPUs.
    """
    with _nvml() as present:
        if not present:
            return ()
        handles = sorted(_handles(), key=_pci_bus_id)
        return tuple(_describe(part, handle) for handle in handles for part in _parts(handle))


def find(uuid: str) -> Gpu:
    """The device with this UUID.

    Raises:
        DeviceUnavailableError: no such device; the message names those that are there.
    """
    found = gpus()
    for gpu in found:
        if gpu.uuid == uuid:
            return gpu
    there = ", ".join(gpu.uuid for gpu in found) or "no GPU"
    raise DeviceUnavailableError(
        f"GPU {uuid} is not on this machine; found {there}; plan again, or give the container this GPU"
    )


@contextmanager
def _nvml() -> Iterator[bool]:
    """NVML for the time of the block; False where its library or its driver is not installed."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        yield False
        return
    except pynvml.NVMLError as error:
        raise DeviceUnavailableError(
            f"NVML does not start: {error}; check the NVIDIA driver with nvidia-smi"
        ) from error
    try:
        yield True
    except pynvml.NVMLError as error:
        raise DeviceUnavailableError(f"NVML fails: {error}; check the NVIDIA driver with nvidia-smi") from error
    finally:
        pynvml.nvmlShutdown()


def _handles() -> Iterator[Any]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            yield pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:  # one that has fallen off the bus must not take the others along
            logger.warning("GPU %d is left out: %s", index, error)


def _parts(handle: Any) -> list[Any]:
    """The MIG instances of a GPU in MIG mode, else the GPU itself."""
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return [handle]
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    instances = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instances.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError_NotFound:
            continue  # instance numbers have gaps
    return instances


def _describe(part: Any, parent: Any) -> Gpu:
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(part)),
        product=_text(pynvml.nvmlDeviceGetName(part)).strip().replace(" ", "-"),
        pci_bus_id=_pci_bus_id(parent),
        free_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(part).free),
    )


def _pci_bus_id(handle: Any) -> str:
    return _text(pynvml.nvmlDeviceGetPciInfo(handle).busId).upper()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
