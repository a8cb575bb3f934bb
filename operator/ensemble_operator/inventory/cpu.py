"""CPU devices: sets of cores out of what a node has free."""

from __future__ import annotations

from collections.abc import Collection

from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.labels import names
from ensemble_operator.inventory.node import Node, Source
from ensemble_runtime.config import DeviceKind

_GRAIN = 64 * 2**20
_MOST_BESIDE = 4 * 2**30
"""Most that a node keeps for the processes around its cells; of small nodes it is a quarter."""
MILLIS = 1000


def core_memory(node: Node) -> int:
    """Bytes that come with each core: a share of allocatable memory, so that it does not change with use.

    Something is left for what pods need besides their devices, or no node could give away its last core.
    """
    cores = node.cpu_millis // MILLIS
    shared = node.memory_bytes - min(node.memory_bytes // 4, _MOST_BESIDE)
    return shared // cores // _GRAIN * _GRAIN if cores else 0


def cores_of(device: Device) -> int:
    """How many cores a CPU device has; 0 for any other device."""
    return int(device.type.removeprefix("cpu-")) if device.kind is DeviceKind.CPU else 0


def cpu_devices(
    node: Node,
    cores_per_device: int,
    *,
    free_millis: int | None = None,
    free_bytes: int | None = None,
    held: Collection[str] = (),
    limit: int | None = None,
) -> tuple[Device, ...]:
    """Devices cpu0, cpu1, ... of so many cores each; the pod that gets them finds out which cores those are.

    Args:
        node: The node.
        cores_per_device: Cores of each.
        free_millis: Thousandths of a core that they may take together; by default what other pods leave.
        free_bytes: Memory that they may take together; by default what other pods leave.
        held: Names that are in use already; the devices get others.
        limit: Most devices.
    """
    memory = core_memory(node) * cores_per_device
    millis = node.cpu_free_millis if free_millis is None else free_millis
    size = node.memory_free_bytes if free_bytes is None else free_bytes
    if memory <= 0:
        return ()
    count = max(0, min(millis // (MILLIS * cores_per_device), size // memory))
    count = count if limit is None else min(count, limit)
    kept = set(held)
    fresh = [name for name in names("cpu", count + len(kept), kept) if name not in kept][:count]
    return tuple(
        Device(name, node.name, DeviceKind.CPU, f"cpu-{cores_per_device}", memory, source=_source(node))
        for name in fresh
    )


def _source(node: Node) -> str:
    return Source.STATIC if node.source is Source.STATIC else "Node"
