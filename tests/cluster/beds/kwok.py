"""Nodes that nobody has: KWOK plays them and the pods on them at the API, a thousand in seconds.

Pods on such a node are ready at once, except those of ensembles whose name starts with `never-ready` (they run and stay
unready) or `pull-fails`, or whose first pull secret is `wrong` (they wait for their image). Profiling pods run until
`Kwok.finish` ends them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from beds.client import Manifest
from beds.controlplane import ControlPlane
from beds.processes import Program, wait_for

STAGES = Path(__file__).parent.parent / "stages"
MANAGED = "kwok.x-k8s.io/node"
GIB = 2**30


class Kwok:
    """KWOK beside a control plane; a context manager."""

    def __init__(self, binary: Path, plane: ControlPlane) -> None:
        self.plane = plane
        flags = [
            f"--kubeconfig={plane.kubeconfig()}",
            *(f"--config={stage}" for stage in sorted(STAGES.glob("*.yaml"))),
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={MANAGED}=fake",
            "--node-lease-duration-seconds=40",
            "--cidr=10.64.0.0/10",
            "--node-ip=192.0.2.1",
        ]
        self.program = Program("kwok", [binary, *flags], plane.folder / "kwok.log")

    def __enter__(self) -> Self:
        self.program.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.kill()

    def add(self, *nodes: Manifest, wait: bool = True) -> list[str]:
        """Nodes join; returns their names as soon as all are ready."""
        names = []
        for node in nodes:
            self.plane.admin.create(node)
            names.append(node["metadata"]["name"])
        if wait:
            wanted = set(names)
            self.program.wait_until(lambda: wanted <= self._ready(), f"ready nodes: {', '.join(names)}"[:200])
        return names

    def remove(self, names: Iterable[str]) -> None:
        """Nodes are taken out of the cluster, with their pods and slices, as if they had never been."""
        for name in names:
            self.plane.admin.delete(f"/api/v1/nodes/{name}")
            for pod in self.pods(name):
                where = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
                self.plane.admin.delete(where, gracePeriodSeconds=0)
            slices = "/apis/resource.k8s.io/v1/resourceslices"
            for piece in self.plane.admin.items(slices, fieldSelector=f"spec.nodeName={name}"):
                self.plane.admin.delete(f"{slices}/{piece['metadata']['name']}")

    def lose(self, name: str) -> None:
        """A node falls silent: not ready from now on, its pods where they were."""
        self.plane.admin.merge(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {MANAGED: None}}})
        silent = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "no heartbeat"}
        self._condition(name, silent)

    def find(self, name: str) -> None:
        """A node that was lost is heard of again."""
        self.plane.admin.merge(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {MANAGED: "fake"}}})
        wait_for(lambda: name in self._ready(), f"node {name} ready again")

    def cordon(self, name: str, on: bool = True) -> None:
        """Take a node out of scheduling, or put it back."""
        self.plane.admin.merge(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": on or None}})

    def taint(self, name: str, *taints: Mapping[str, str]) -> None:
        """A node's taints from now on; none clears them."""
        self.plane.admin.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": list(taints) or None}})

    def pods(self, node: str) -> list[Manifest]:
        """The pods that the scheduler has put on a node."""
        return self.plane.admin.items("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")

    def finish(self, pod: Manifest, exit_code: int = 0, message: str = "", reason: str | None = None) -> None:
        """Every container of a pod ends with this code and termination message, and none starts again."""
        now = _now()
        ended = {
            "exitCode": exit_code,
            "message": message,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "startedAt": now,
            "finishedAt": now,
        }
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        # Before KWOK has started it, what is written here would be written over.
        wait_for(lambda: "podIP" in self.plane.admin.get(path)["status"], "the pod started")
        phase = "Failed" if exit_code else "Succeeded"
        unready = [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")]
        self._pod_status(pod, {"phase": phase, "conditions": unready}, {"terminated": ended}, restarts=0)

    def crash(self, pod: Manifest, exit_code: int, message: str = "", restarts: int = 1) -> None:
        """Every container of a pod has died so often and waits for its next start, as in CrashLoopBackOff."""
        ended = {"exitCode": exit_code, "message": message, "reason": "Error", "finishedAt": _now()}
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": f"restarting after {exit_code}"}}
        unready = [{"type": kind, "status": "False"} for kind in ("Ready", "ContainersReady")]
        self._pod_status(pod, {"conditions": unready}, waiting, restarts, {"terminated": ended})

    def _pod_status(
        self,
        pod: Manifest,
        status: dict[str, Any],
        state: dict[str, Any],
        restarts: int,
        last: dict[str, Any] | None = None,
    ) -> None:
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": False,
                "restartCount": restarts,
                "state": state,
                **({"lastState": last} if last else {}),
            }
            for container in pod["spec"]["containers"]
        ]
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        self.plane.admin.merge(path, {"status": {**status, "containerStatuses": containers}})

    def _ready(self) -> set[str]:
        return {
            node["metadata"]["name"]
            for node in self.plane.admin.items("/api/v1/nodes")
            if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
        }

    def _condition(self, name: str, condition: Mapping[str, str]) -> None:
        path = f"/api/v1/nodes/{name}"
        others = [c for c in self.plane.admin.get(path)["status"]["conditions"] if c["type"] != condition["type"]]
        self.plane.admin.merge(f"{path}/status", {"status": {"conditions": [*others, dict(condition)]}})


def node(name: str, *, cores: int = 32, memory_gib: int = 128, labels: Mapping[str, str] | None = None) -> Manifest:
    """A node without GPUs."""
    resources = {"cpu": str(cores), "memory": f"{memory_gib}Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {MANAGED: "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **(labels or {}),
            },
        },
        "status": {"capacity": resources, "allocatable": dict(resources)},
    }


def gpu_node(
    name: str,
    product: str = "NVIDIA-A100-SXM4-40GB",
    count: int = 8,
    memory_mib: int = 40960,
    *,
    cores: int = 64,
    memory_gib: int = 512,
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    """A node with NVIDIA's device plugin and GPU feature discovery: labels, and `nvidia.com/gpu` in its allocatable."""
    discovered = {
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.memory": str(memory_mib),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/mig.capable": "false",
        "nvidia.com/mig.strategy": "none",
        "nvidia.com/gpu.present": "true",
    }
    manifest = node(name, cores=cores, memory_gib=memory_gib, labels={**discovered, **(labels or {})})
    for side in ("capacity", "allocatable"):
        manifest["status"][side]["nvidia.com/gpu"] = str(count)
    return manifest


def resource_slice(
    node_name: str,
    product: str = "NVIDIA A100-SXM4-40GB",
    count: int = 8,
    memory_mib: int = 40960,
    *,
    generation: int = 1,
    driver: str = "gpu.nvidia.com",
) -> Manifest:
    """The complete pool of a node with NVIDIA's DRA driver, in one slice."""
    devices = [
        {
            "name": f"gpu-{index}",
            "attributes": {
                "type": {"string": "gpu"},
                "uuid": {"string": f"GPU-{node_name}-{index}"},
                "productName": {"string": product},
                "architecture": {"string": "Ampere"},
                "driverVersion": {"version": "580.82.7"},
            },
            "capacity": {"memory": {"value": f"{memory_mib}Mi"}},
        }
        for index in range(count)
    ]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node_name}-{driver}-{generation}"},
        "spec": {
            "driver": driver,
            "nodeName": node_name,
            "pool": {"name": node_name, "generation": generation, "resourceSliceCount": 1},
            "devices": devices,
        },
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
