"""The question that the planner answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_operator.inventory.device import Device
from ensemble_operator.profiles.profile import Profile


@dataclass(frozen=True, slots=True)
class PlanMember:
    """A member as the planner sees it: its cost on each device type that it may run on."""

    name: str
    profiles: Mapping[str, Profile]
    """By device type; a type that is absent cannot run the member. Points hold only permitted batch sizes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Devices (rows) and members (columns) of the allocation matrix."""

    devices: tuple[Device, ...]
    members: tuple[PlanMember, ...]
