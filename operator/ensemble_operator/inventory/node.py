"""A node as planning sees it, whatever told of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ensemble_operator.inventory.device import Device


class Source(StrEnum):
    """What told of a node's GPUs."""

    LABELS = "Labels"
    RESOURCE_SLICES = "ResourceSlices"
    STATIC = "Static"
    NONE = "None"


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        """As kubectl writes it: ``key=value:Effect``."""
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node: what our ensembles may use of it between them."""

    name: str
    ready: bool
    excluded: str | None = None
    """Why nothing new may start here, whoever asks: NotReady or Cordoned. Taints are for each ensemble to tolerate:
    see `terms.refusal`."""
    devices: tuple[Device, ...] = ()
    """GPUs, those that our pods hold included."""
    cpu_millis: int = 0
    """Allocatable, in thousandths of a core."""
    memory_bytes: int = 0
    """Allocatable."""
    cpu_free_millis: int = 0
    """What is left of it after the requests of pods that are not ours."""
    memory_free_bytes: int = 0
    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    source: Source = Source.NONE
    notes: tuple[str, ...] = ()
    """Why devices that are there are not offered, for people."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the cluster has."""

    nodes: tuple[Node, ...]
    """Sorted by name."""
