"""What a ResourceClaim has been allocated, in one slim record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.inventory.pod_record import MANAGED_BY, MANAGER

Identity = tuple[str, str, str]
"""Driver, pool and name of a published device."""


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A claim that has devices."""

    namespace: str
    name: str
    ours: bool
    devices: frozenset[Identity]


def allocated(claim: Mapping[str, Any]) -> ClaimUse | None:
    """The devices of a ResourceClaim; None where it has none. Access for administrators takes nothing from anybody."""
    metadata = claim["metadata"]
    allocation = (claim.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    devices = frozenset((r["driver"], r["pool"], r["device"]) for r in results if not r.get("adminAccess"))
    if not devices:
        return None
    ours = (metadata.get("labels") or {}).get(MANAGED_BY) == MANAGER
    return ClaimUse(metadata.get("namespace") or "", metadata["name"], ours, devices)


def others_devices(claims: Iterable[ClaimUse]) -> frozenset[Identity]:
    """The devices that claims of others have."""
    return frozenset(device for claim in claims if not claim.ours for device in claim.devices)
