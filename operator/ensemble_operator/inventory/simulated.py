"""The devices that a manifest makes up."""

from __future__ import annotations

from collections.abc import Iterable

from ensemble_operator.api.ensemble import SimulatedDevices
from ensemble_operator.inventory.device import Device
from ensemble_runtime.config import DeviceKind

MIB = 2**20


def simulated_devices(stated: Iterable[SimulatedDevices], node: str = "local") -> tuple[Device, ...]:
    """Devices sim0, sim1, ... in the order stated, all on one node."""
    types = [entry for entry in stated for _ in range(entry.count)]
    return tuple(
        Device(f"sim{i}", node, DeviceKind.SIMULATED, entry.type, entry.memory_mib * MIB, source="manifest")
        for i, entry in enumerate(types)
    )
