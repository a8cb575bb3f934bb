"""What plans choose from on nodes of every sort, as the operator reads them from a real API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from beds.client import Manifest
from beds.kwok import Kwok, gpu_node, node, resource_slice
from beds.operating import A100, Operator, Space, profile
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)

CLAIMS = "/apis/resource.k8s.io/v1"
MIG = f"{A100}-MIG-3g.20gb"
EXAMPLE = '{"gpu.example.com": {"product": "model"}}'


def mig_node(name: str) -> Manifest:
    """A node whose GPUs are cut into instances of one size, under a resource of that size."""
    found = gpu_node(
        name, count=0, labels={"nvidia.com/mig.strategy": "mixed", "nvidia.com/mig-3g.20gb.memory": "20096"}
    )
    for side in ("capacity", "allocatable"):
        del found["status"][side]["nvidia.com/gpu"]
        found["status"][side]["nvidia.com/mig-3g.20gb"] = "2"
    return found


def example_slice(name: str) -> Manifest:
    """What another driver than NVIDIA's publishes, in its own words."""
    found = copy.deepcopy(resource_slice(name, count=1, driver="gpu.example.com"))
    for device in found["spec"]["devices"]:
        device["attributes"] = {"uuid": {"string": f"gpu-{name}"}, "model": {"string": "LATEST GPU"}}
    return found


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[Kwok]:
    """One node of each sort."""
    shared = {"nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"}
    names = kwok.add(
        gpu_node("src-plugin", count=2),
        gpu_node("src-shared", count=8, labels=shared),
        mig_node("src-mig"),
        node("src-dra"),
        node("src-example"),
    )
    slices = [resource_slice("src-dra", "NVIDIA H100 80GB HBM3", 2, 81559), example_slice("src-example")]
    made = [kwok.plane.admin.create(one)["metadata"]["name"] for one in slices]
    yield kwok
    for name in made:
        kwok.plane.admin.delete(f"{CLAIMS}/resourceslices/{name}")
    kwok.remove(names)


@pytest.fixture(scope="module")
def operator(nodes: Kwok) -> Iterator[Operator]:
    with Operator(nodes.plane, dra_drivers=EXAMPLE) as running:
        yield running


@pytest.fixture
def space(nodes: Kwok, operator: Operator, namespace: str) -> Iterator[Space]:
    found = Space(nodes.plane, namespace)
    for kind in (A100, MIG, "NVIDIA-H100-80GB-HBM3", "LATEST-GPU"):
        for member in "ab":
            written = profile(member, namespace, kind)
            written["metadata"]["name"] = written["metadata"]["name"].replace(".", "-")
            nodes.plane.admin.apply(written)
    yield found
    found.clear()


def ask(space: Space, place: str, **placement: Any) -> None:
    """Ask for a plan on one node, and for nothing else."""
    on = {"nodeSelector": {"kubernetes.io/hostname": place}, **placement}
    space.apply("where", mode="PlanOnly", placement=on)


def planned(space: Space, count: int = 2) -> set[tuple[str, str, str]]:
    """Device, type and source of each row of the plan, once it has so many."""

    def rows() -> list[Any]:
        found: list[Any] = space.status("where").get("matrix", [])
        return found

    wait_for(lambda: len(rows()) == count, f"a plan on {count} devices")
    return {(row["device"], row["type"], row["source"]) for row in rows()}


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("src-plugin", {(f"gpu{i}", A100, "Labels") for i in range(2)}),
        ("src-mig", {(f"mig-3g-20gb-{i}", MIG, "Labels") for i in range(2)}),
        ("src-dra", {(f"gpu-{i}", "NVIDIA-H100-80GB-HBM3", "ResourceSlices") for i in range(2)}),
        ("src-example", {("gpu-0", "LATEST-GPU", "ResourceSlices")}),
    ],
)
def test_each_sort_of_node_gives_its_devices(space: Space, place: str, rows: set[tuple[str, str, str]]) -> None:
    ask(space, place)
    assert planned(space, len(rows)) == rows


def test_what_another_pod_requests_is_not_offered(space: Space) -> None:
    ask(space, "src-plugin")
    planned(space, 2)
    limits = {"nvidia.com/gpu": "1"}
    space.plane.admin.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "other", "namespace": space.namespace},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": "src-plugin"},
                "containers": [{"name": "main", "image": "other", "resources": {"limits": limits}}],
            },
        }
    )
    assert planned(space, 1) == {("gpu0", A100, "Labels")}
    space.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}/pods/other")
    planned(space, 2)


def test_what_another_claim_has_is_not_offered(space: Space) -> None:
    ask(space, "src-dra")
    planned(space, 2)
    where = f"{CLAIMS}/namespaces/{space.namespace}/resourceclaims"
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    space.plane.admin.create(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": "other", "namespace": space.namespace},
            "spec": {"devices": {"requests": [request]}},
        }
    )
    result = {"request": "gpu", "driver": "gpu.nvidia.com", "pool": "src-dra", "device": "gpu-0"}
    status = {"allocation": {"devices": {"results": [result]}}}
    space.plane.admin.merge(f"{where}/other/status", {"status": status})
    assert planned(space, 1) == {("gpu-1", "NVIDIA-H100-80GB-HBM3", "ResourceSlices")}
    space.plane.admin.merge(f"{where}/other/status", {"status": {"allocation": None}})
    planned(space, 2)


def test_shared_gpus_are_refused_and_the_reason_is_told(space: Space) -> None:
    ask(space, "src-shared")
    wait_for(lambda: space.condition("where", "Planned")[0] == "False", "it is known that there is nothing")
    assert space.status("where")["inventory"]["devices"] == 0
    message = space.condition("where", "Planned")[2]
    assert message.startswith("no node has a device that it may use; nodes refused:")
    assert "src-shared: nvidia.com/gpu: shared by time-slicing" in message


def test_a_taint_keeps_off_whom_does_not_tolerate_it(space: Space, nodes: Kwok) -> None:
    nodes.taint("src-plugin", {"key": "team", "value": "b", "effect": "NoSchedule"})
    try:
        ask(space, "src-plugin")
        wait_for(lambda: space.condition("where", "Planned")[0] == "False", "it is kept off")
        ask(space, "src-plugin", tolerations=[{"key": "team", "value": "b"}])
        planned(space, 2)
    finally:
        nodes.taint("src-plugin")


def test_strict_pinning_refuses_gpus_that_nobody_can_choose(space: Space) -> None:
    ask(space, "src-plugin", devicePinning="Strict")
    wait_for(lambda: space.condition("where", "Planned")[0] == "False", "there are none that can be chosen")
    ask(space, "src-dra", devicePinning="Strict")
    planned(space, 2)
