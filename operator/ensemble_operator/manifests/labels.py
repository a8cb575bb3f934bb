"""Labels and annotations: what selects the objects of an ensemble, and what a restarted operator reads from pods."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ensemble_operator.inventory.device import Device
from ensemble_runtime.config import DeviceKind

MANAGER = "ensemble-operator"
GROUP = "ensembles.dev"

ENSEMBLE = f"{GROUP}/ensemble"
PLAN = f"{GROUP}/plan"
REVISION = f"{GROUP}/revision"
COPY = f"{GROUP}/copy"
SHARD = f"{GROUP}/shard"
ROLE = f"{GROUP}/role"
CONFIG = f"{GROUP}/config"
"""On a pod and on its ConfigMap: the hash in that name. A ConfigMap stays as long as a pod that bears its label."""
CELLS = f"{GROUP}/cells"
DEVICES = f"{GROUP}/devices"

HEAD, REMOTE = "head", "shard"
SERVING, PROFILER = "shard", "profiler"

Labels = dict[str, str]
Cell = tuple[Device, str, int]


def common(ensemble: str, component: str = SERVING) -> Labels:
    """On everything that the operator makes for an ensemble."""
    return {
        "app.kubernetes.io/name": "ensemble-runtime",
        "app.kubernetes.io/instance": ensemble,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/part-of": "ensembles",
        ENSEMBLE: ensemble,
    }


def heads(ensemble: str) -> Labels:
    """Selects the pods that answer, one for each copy, of any revision."""
    return {ENSEMBLE: ensemble, ROLE: HEAD}


def selector(labels: Mapping[str, str]) -> str:
    """Labels as a selector is written, e.g. for `status.selector`."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def holding(devices: Iterable[Device], cells: Iterable[Cell]) -> Labels:
    """The annotations that say what a pod holds and runs."""
    held = [
        {
            "name": d.name,
            "node": d.node,
            "kind": d.kind.value,
            "type": d.type,
            "memoryBytes": d.memory_bytes,
            "cores": list(d.cores),
            "uuid": d.uuid,
            "source": d.source,
            **({"driver": d.driver} if d.driver else {}),
        }
        for d in devices
    ]
    run = [{"node": d.node, "device": d.name, "member": m, "batchSize": size} for d, m, size in cells]
    return {DEVICES: _compact(held), CELLS: _compact(run)}


def held(annotations: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that a pod of ours holds.

    Raises:
        ValueError: The annotation is not as `holding` writes it.
    """
    try:
        return tuple(
            Device(
                name=str(d["name"]),
                node=str(d["node"]),
                kind=DeviceKind(d["kind"]),
                type=str(d["type"]),
                memory_bytes=int(d["memoryBytes"]),
                cores=tuple(d["cores"]),
                uuid=d["uuid"],
                source=str(d["source"]),
                driver=d.get("driver"),
            )
            for d in json.loads(annotations.get(DEVICES, "[]"))
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"annotation {DEVICES}: {error!r}") from error


def running(annotations: Mapping[str, str]) -> tuple[Cell, ...]:
    """The cells that a pod of ours runs, as `Plan.cells` has them.

    Raises:
        ValueError: The annotations are not as `holding` writes them.
    """
    devices = {(d.node, d.name): d for d in held(annotations)}
    try:
        return tuple(
            (devices[c["node"], c["device"]], str(c["member"]), int(c["batchSize"]))
            for c in json.loads(annotations.get(CELLS, "[]"))
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"annotation {CELLS}: {error!r}") from error


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
