"""What is decided about each ensemble, and about the cluster as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import Partition

Want = tuple[str, str, str, Partition | None]
"""What a profile is of: the model's digest (its address where that is not known), the device type, the precision; on a
pair of devices also what the split is to be best at."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A profile that an ensemble waits for."""

    want: Want
    member: str
    device: Device | None
    """A free device to measure on, of a pair the first; None: there is none now."""
    given_up: str | None = None
    """Why it is not measured now: what its last pod said."""
    measuring: bool = False
    """Whether the pod that measures it is there."""
    trouble: str | None = None
    """Why that pod does not run."""
    second: Device | None = None
    """The cores beside the device, where a pair is measured."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What an ensemble's plan could choose from."""

    devices: int = 0
    free: int = 0
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retreat:
    """What is carried out instead of what is asked for, which did not become ready in time."""

    edition: str
    """The one that is given up."""
    message: str
    """Why it is."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of an ensemble."""

    fault: str | None = None
    """Why the spec is refused; what runs goes on."""
    suspended: bool = False
    dry: bool = False
    """The plans are to be shown, not carried out."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Model digest of each member, as far as known."""
    revision: str | None = None
    missing: tuple[Missing, ...] = ()
    plans: Mapping[int, Plan] = field(default_factory=dict)
    """By the number of the copy."""
    frozen: bool = False
    """What runs is to be left as it is: nothing can take its place yet."""
    waiting: str | None = None
    """Why copies have no plan."""
    preempted_by: str | None = None
    stranded: frozenset[int] = frozenset()
    """Copies that have lost devices and have no plan: what is left of them stays as it is."""
    supply: Supply = Supply()
    carried: str | None = None
    """The spec that is carried out where that is not the one asked for, as canonical JSON."""
    away: frozenset[str] = frozenset()
    """Of the nodes that its pods are on, those that are gone or not heard of."""
    retreat: Retreat | None = None
    """Where the change to what is asked for was given up: plans and digests are those of what served before."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The devices of the cluster."""

    devices: Mapping[tuple[str, str], int]
    """(type, 'used' or 'free') -> how many."""
    notes: tuple[str, ...] = ()
    """Why devices that are there are not offered."""


OVERVIEW = ("", "")
"""The key of the Overview among decisions, which are by (namespace, name)."""
