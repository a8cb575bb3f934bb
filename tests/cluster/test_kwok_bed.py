"""KWOK's nodes and pods behave as the tests that stand on them take for granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beds.client import Manifest
from beds.controlplane import ControlPlane
from beds.kwok import Kwok, gpu_node, resource_slice
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def gpus(kwok: Kwok) -> Iterator[str]:
    """A node with two GPUs."""
    (name,) = kwok.add(gpu_node("two-gpus", count=2))
    yield name
    kwok.remove([name])


def pod(namespace: str, name: str, gpus: int, ensemble: str = "digits") -> Manifest:
    request = {"nvidia.com/gpu": str(gpus)}
    container = {"name": "runtime", "image": "runtime:1", "resources": {"requests": request, "limits": request}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"ensembles.dev/ensemble": ensemble}},
        "spec": {"containers": [container]},
    }


def seen(plane: ControlPlane, namespace: str, name: str) -> Callable[[], dict[str, Any]]:
    return lambda: plane.admin.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"]


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in status.get("conditions", [])}


def test_the_scheduler_counts_gpus_and_pods_become_ready(kwok: Kwok, namespace: str, gpus: str) -> None:
    plane = kwok.plane
    plane.admin.create(pod(namespace, "fits", 2))
    status = seen(plane, namespace, "fits")
    wait_for(lambda: conditions(status()).get("Ready") == "True", "the pod ready")
    assert [p["metadata"]["name"] for p in kwok.pods(gpus)] == ["fits"]
    plane.admin.create(pod(namespace, "waits", 1))
    waiting = seen(plane, namespace, "waits")
    wait_for(lambda: conditions(waiting()).get("PodScheduled") == "False", "the scheduler's no")
    plane.admin.delete(f"/api/v1/namespaces/{namespace}/pods/fits")
    wait_for(lambda: conditions(waiting()).get("Ready") == "True", "the second pod in its place")


def test_pods_end_as_told(kwok: Kwok, namespace: str, gpus: str) -> None:
    plane = kwok.plane
    created = plane.admin.create(pod(namespace, "profile", 1))
    status = seen(plane, namespace, "profile")
    wait_for(lambda: status()["phase"] == "Running", "the pod running")
    kwok.finish(created, message="measured")
    ended = status()
    assert ended["phase"] == "Succeeded"
    assert ended["containerStatuses"][0]["state"]["terminated"]["message"] == "measured"


def test_a_crash_shows_its_exit_code(kwok: Kwok, namespace: str, gpus: str) -> None:
    plane = kwok.plane
    created = plane.admin.create(pod(namespace, "crashes", 1))
    status = seen(plane, namespace, "crashes")
    wait_for(lambda: status()["phase"] == "Running", "the pod running")
    kwok.crash(created, 137, restarts=3)
    container = status()["containerStatuses"][0]
    assert container["lastState"]["terminated"]["exitCode"] == 137
    assert container["restartCount"] == 3
    assert conditions(status())["Ready"] == "False"


@pytest.mark.parametrize(
    ("ensemble", "phase", "state"), [("never-ready-a", "Running", "running"), ("pull-fails-b", "Pending", "waiting")]
)
def test_names_of_ensembles_ask_for_faults(
    kwok: Kwok, namespace: str, gpus: str, ensemble: str, phase: str, state: str
) -> None:
    plane = kwok.plane
    plane.admin.create(pod(namespace, "faulty", 1, ensemble))
    status = seen(plane, namespace, "faulty")
    wait_for(lambda: bool(status().get("containerStatuses")), "the pod on its node")
    assert status()["phase"] == phase
    assert state in status()["containerStatuses"][0]["state"]
    assert conditions(status())["Ready"] == "False"


def test_a_lost_node_is_tainted_and_comes_back(kwok: Kwok, gpus: str) -> None:
    path = f"/api/v1/nodes/{gpus}"

    def taints() -> set[str]:
        return {taint["key"] for taint in kwok.plane.admin.get(path)["spec"].get("taints", [])}

    kwok.lose(gpus)
    wait_for(lambda: "node.kubernetes.io/unreachable" in taints(), "the controller manager's taint")
    kwok.find(gpus)
    wait_for(lambda: not taints(), "no taint any more")


def test_slices_go_with_their_node(kwok: Kwok) -> None:
    (name,) = kwok.add(gpu_node("with-dra", count=0))
    plane, slices = kwok.plane, "/apis/resource.k8s.io/v1/resourceslices"
    plane.admin.create(resource_slice(name, count=4))
    (piece,) = plane.admin.items(slices, fieldSelector=f"spec.nodeName={name}")
    assert len(piece["spec"]["devices"]) == 4
    kwok.remove([name])
    assert not plane.admin.items(slices, fieldSelector=f"spec.nodeName={name}")


def test_a_hundred_nodes_in_a_moment(kwok: Kwok) -> None:
    names = kwok.add(*(gpu_node(f"many-{i:03}") for i in range(100)))
    assert len(names) == 100
    kwok.remove(names)
