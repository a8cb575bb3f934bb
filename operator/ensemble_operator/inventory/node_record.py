"""What matters of a Kubernetes Node; two records are equal when nothing that matters changed (heartbeats do not)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.inventory.node import Taint
from ensemble_operator.inventory.quantity import whole


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A Node, slim."""

    name: str
    ready: bool
    cordoned: bool
    taints: tuple[Taint, ...]
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    """CPU in thousandths of a core, all else whole: bytes, devices."""


def node_record(node: Mapping[str, Any]) -> NodeRecord:
    """Read a Node as the API server gives it."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    return NodeRecord(
        name=metadata["name"],
        ready=conditions.get("Ready") == "True",
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(Taint(t["key"], t.get("value") or "", t["effect"]) for t in spec.get("taints") or ()),
        labels=dict(metadata.get("labels") or {}),
        allocatable=amounts(status.get("allocatable") or {}),
    )


def amounts(resources: Mapping[str, str]) -> dict[str, int]:
    """A resource list as numbers: CPU in thousandths of a core, all else whole."""
    return {name: whole(value, per=1000 if name == "cpu" else 1) for name, value in resources.items()}
