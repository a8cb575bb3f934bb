"""Objects as the API server gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


class Bodies:
    """Makes the bodies that the tests need."""

    @staticmethod
    def node(name: str = "n", gpus: int | None = 2, labels: Mapping[str, str] | None = None, **more: Any) -> Any:
        known = {
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
            "nvidia.com/gpu.memory": "40960",
            "nvidia.com/gpu.sharing-strategy": "none",
            "nvidia.com/gpu.replicas": "1",
        }
        allocatable = {"cpu": "15900m", "memory": "64Gi", "pods": "110", **more.pop("allocatable", {})}
        if gpus is not None:
            allocatable["nvidia.com/gpu"] = str(gpus)
        return {
            "metadata": {"name": name, "labels": known if labels is None else dict(labels)},
            "spec": {"taints": more.pop("taints", None), "unschedulable": more.pop("cordoned", None)},
            "status": {
                "allocatable": allocatable,
                "conditions": [{"type": "Ready", "status": more.pop("ready", "True"), "lastHeartbeatTime": "now"}],
            },
        }

    @staticmethod
    def pod(
        name: str = "p",
        node: str = "n",
        requests: Mapping[str, str] | None = None,
        holds: Sequence[tuple[str, str]] | None = None,
        phase: str = "Running",
        health: Mapping[str, Sequence[str]] | None = None,
        **spec: Any,
    ) -> Any:
        metadata: dict[str, Any] = {"name": name, "namespace": "default"}
        if holds is not None:
            metadata["labels"] = {"app.kubernetes.io/managed-by": "ensemble-operator"}
            devices = [{"node": n, "name": d} for n, d in holds]
            metadata["annotations"] = {"ensembles.dev/devices": json.dumps(devices)}
        containers = [{"name": "main", "resources": {"requests": dict(requests or {})}}]
        resources = [
            {"name": name, "resources": [{"resourceID": str(i), "health": h} for i, h in enumerate(found)]}
            for name, found in (health or {}).items()
        ]
        return {
            "metadata": metadata,
            "spec": {"nodeName": node, "containers": containers, **spec},
            "status": {"phase": phase, "containerStatuses": [{"allocatedResourcesStatus": resources}]},
        }

    @staticmethod
    def gpu(name: str, **more: Any) -> Any:
        attributes = {
            "type": {"string": "gpu"},
            "uuid": {"string": f"GPU-{name}"},
            "productName": {"string": "NVIDIA A100-SXM4-40GB"},
            "driverVersion": {"version": "580.0.0"},
        } | more.pop("attributes", {})
        return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": "40Gi"}}, **more}

    @staticmethod
    def slice_(
        devices: Sequence[Any],
        node: str = "n",
        pool: str = "n",
        part: int = 0,
        of: int = 1,
        generation: int = 1,
        driver: str = "gpu.nvidia.com",
        **spec: Any,
    ) -> Any:
        return {
            "metadata": {"name": f"{driver}-{pool}-{generation}-{part}"},
            "spec": {
                "driver": driver,
                "pool": {"name": pool, "generation": generation, "resourceSliceCount": of},
                "nodeName": node,
                "devices": list(devices),
                **spec,
            },
        }

    @staticmethod
    def claim(devices: Sequence[str], pool: str = "n", ours: bool = False, admin: bool = False) -> Any:
        results = [{"driver": "gpu.nvidia.com", "pool": pool, "device": d, "adminAccess": admin} for d in devices]
        labels = {"app.kubernetes.io/managed-by": "ensemble-operator"} if ours else {}
        metadata = {"name": "c", "namespace": "default", "labels": labels}
        return {"metadata": metadata, "status": {"allocation": {"devices": {"results": results}}}}


@pytest.fixture(scope="session")
def bodies() -> Bodies:
    return Bodies()
