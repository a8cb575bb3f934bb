"""The question that the planner answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ensemble_operator.api.objective import Objective
from ensemble_operator.inventory.device import Device
from ensemble_operator.profiles.profile import Profile
from ensemble_runtime.config import MAX_MEMBERS
from ensemble_runtime.errors import ManifestError

MAX_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class PlanMember:
    """A member as the planner sees it: its cost on each device type that it may run on."""

    name: str
    profiles: Mapping[str, Profile]
    """By device type; a type that is absent cannot run the member. Points hold only permitted batch sizes."""
    pairs: Mapping[str, Profile] = field(default_factory=dict)
    """By type of a pair of devices that it can be partitioned over (see `pairs`)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Devices (rows) and members (columns) of the allocation matrix, and what the plan is to be best at."""

    devices: tuple[Device, ...]
    members: tuple[PlanMember, ...]
    objective: Objective = field(default_factory=Objective)
    interference: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """(device type, member, member) -> measured rate of the two side by side over their rate one after the other, each
    at the middle of its batch sizes."""
    node_cost: float = 0.001
    """The fraction by which each further node must raise the rate to be worth crossing to."""
    running: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """Cells that run now: (node, device, member) -> batch size. Empty: a cold start."""
    move_cost: float = 0.01
    """With `running`: the fraction by which each started or changed cell must raise the rate."""

    companions: Mapping[tuple[str, str], Device] = field(default_factory=dict)
    """(node, device) -> the cores that are one device with it; they are not among the devices."""
    split: frozenset[str] = frozenset()
    """Members that use both devices of a pair."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.devices) <= MAX_DEVICES:
            raise ManifestError(f"devices: got {len(self.devices)}, expected 1 to {MAX_DEVICES}")
        if not 1 <= len(self.members) <= MAX_MEMBERS:
            raise ManifestError(f"members: got {len(self.members)}, expected 1 to {MAX_MEMBERS}")
        if len({(d.node, d.name) for d in self.devices}) != len(self.devices):
            raise ManifestError("devices: two devices of one node share a name; names must be unique within a node")
        if len({m.name for m in self.members}) != len(self.members):
            raise ManifestError("members: names must be unique")
        for name, value in (("nodeCost", self.node_cost), ("moveCost", self.move_cost)):
            if not 0 <= value <= 1:
                raise ManifestError(f"{name}: got {value}, expected a fraction between 0 and 1")
        for key, factor in self.interference.items():
            if not 0.05 <= factor <= 20:
                raise ManifestError(f"interference of {key}: got {factor}, expected a ratio between 0.05 and 20")
