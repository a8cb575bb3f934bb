"""The devices of this machine, as the runtime finds them."""

from __future__ import annotations

from pydantic import TypeAdapter

from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.runtime_command import records
from ensemble_runtime import config

_DEVICES = TypeAdapter(tuple[config.Device, ...])


def local_devices(cores_per_device: int, node: str = "local") -> tuple[Device, ...]:
    """GPUs and CPU core sets of this machine.

    Args:
        cores_per_device: Cores that make up one CPU device.
        node: What the devices call this machine.

    Raises:
        RuntimeCommandError: The runtime could not look.
    """
    (found,) = records("devices", "--cores-per-device", str(cores_per_device))
    return tuple(
        Device(d.name, node, d.kind, d.type, d.memory_bytes, d.cores, d.uuid, source="local")
        for d in _DEVICES.validate_python(found)
    )
