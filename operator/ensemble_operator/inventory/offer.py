"""What one source offers of one node's GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_operator.inventory.device import Device


@dataclass(frozen=True, slots=True)
class Offer:
    """GPUs of a node, and why others that are there are not among them."""

    devices: tuple[Device, ...] = ()
    notes: tuple[str, ...] = ()
