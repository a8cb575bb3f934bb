"""What a pod takes of its node, in one slim record: ten thousand bodies need not be kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.inventory.labels import is_slot
from ensemble_operator.inventory.node_record import amounts

DEVICES = "ensembles.dev/devices"
"""Annotation of our pods: the devices that they hold."""
MANAGER = "ensemble-operator"

MANAGED_BY = "app.kubernetes.io/managed-by"


@dataclass(frozen=True, slots=True)
class PodUse:
    """A pod that takes something."""

    namespace: str
    name: str
    node: str
    """Where it runs; empty while it waits for the scheduler."""
    requests: Mapping[str, int]
    """CPU in thousandths of a core, all else whole."""
    holds: tuple[tuple[str, str], ...] | None = None
    """(node, device) of each device that a pod of ours holds, scheduled or not; None: the pod is not ours."""
    broken: tuple[tuple[str, str], ...] = ()
    """Those of them that its node reports as unhealthy."""


def claimed(pod: Mapping[str, Any]) -> PodUse | None:
    """What a pod takes; None where that is nothing: it has ended, or it is not ours and not scheduled yet."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    holds, node = _holds(metadata), spec.get("nodeName") or ""
    if holds is None and not node:
        return None
    broken = _broken(holds or (), pod.get("status") or {})
    return PodUse(metadata.get("namespace") or "", metadata["name"], node, _requests(spec), holds, broken)


def held_devices(pods: Iterable[PodUse]) -> dict[str, frozenset[str]]:
    """The names of the sound devices that pods of ours hold, by node."""
    return _by_node(slot for pod in pods for slot in pod.holds or () if slot not in pod.broken)


def broken_devices(pods: Iterable[PodUse]) -> dict[str, frozenset[str]]:
    """The names of the broken devices that pods of ours hold, by node."""
    return _by_node(slot for pod in pods for slot in pod.broken)


def _holds(metadata: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    if (metadata.get("labels") or {}).get(MANAGED_BY) != MANAGER:
        return None
    try:
        devices = json.loads((metadata.get("annotations") or {})[DEVICES])
        return tuple((device["node"], device["name"]) for device in devices)
    except (KeyError, TypeError, ValueError):
        return None  # not written by us, so it counts by what it requests


def _by_node(slots: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for node, device in slots:
        found.setdefault(node, set()).add(device)
    return {node: frozenset(names) for node, names in found.items()}


def _broken(holds: Iterable[tuple[str, str]], status: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """As many of a pod's anonymous devices as are unhealthy: nobody knows which is behind which name."""
    found: list[tuple[str, str]] = []
    for container in status.get("containerStatuses") or ():
        for resource in container.get("allocatedResourcesStatus") or ():
            alike = [slot for slot in holds if is_slot(slot[1], resource["name"])]
            sound = sum(device.get("health") != "Unhealthy" for device in resource.get("resources") or ())
            found += alike[sound:]
    return tuple(found)


def _requests(spec: Mapping[str, Any]) -> dict[str, int]:
    """What the scheduler counts: sidecars add to all that runs beside them, other init containers run one by one."""
    beside: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in spec.get("initContainers") or ():
        own = _of(container)
        if container.get("restartPolicy") == "Always":
            beside += own
            peak |= beside
        else:
            peak |= beside + own
    together = sum((_of(container) for container in spec.get("containers") or ()), beside)
    whole_pod = amounts(((spec.get("resources") or {}).get("requests")) or {})
    total = dict(peak | together) | whole_pod
    return dict(Counter(total) + Counter(amounts(spec.get("overhead") or {})))


def _of(container: Mapping[str, Any]) -> Counter[str]:
    return Counter(amounts((container.get("resources") or {}).get("requests") or {}))
