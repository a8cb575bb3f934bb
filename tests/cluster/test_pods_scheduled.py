"""Pods of plans before the real scheduler: the node that was planned, the GPU that was planned, or they wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sample_plans import DIGESTS, SETTINGS, children, cpu, gpu, make_ensemble, make_plan

from beds.kwok import Kwok, gpu_node, node, resource_slice
from beds.processes import wait_for
from ensemble_operator.inventory.device import Device

pytestmark = pytest.mark.timeout(300)  # the first test starts the control plane
CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {"selectors": [{"cel": {"expression": 'device.driver == "gpu.nvidia.com"'}}]},
}


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    """One node with GPUs by label, one with GPUs by slice, one with cores alone."""
    names = kwok.add(gpu_node("put-labels", count=2), node("put-slices"), node("put-cores", cores=4))
    kwok.plane.admin.apply(CLASS)
    kwok.plane.admin.create(resource_slice("put-slices", count=4))
    yield names
    kwok.remove(names)


def uuids(kwok: Kwok) -> dict[str, str]:
    """UUID of each GPU that the slice tells of."""
    (piece,) = kwok.plane.admin.items(
        "/apis/resource.k8s.io/v1/resourceslices", fieldSelector="spec.nodeName=put-slices"
    )
    return {d["name"]: d["attributes"]["uuid"]["string"] for d in piece["spec"]["devices"]}


def deployed(kwok: Kwok, namespace: str, name: str, devices: list[Device]) -> dict[str, Any]:
    """Create what the builders make of a plan with a member on each device; the pod as it was created."""
    owner = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": name, "namespace": namespace},
        "spec": make_ensemble(name).model_dump(mode="json", by_alias=True, exclude_defaults=True)["spec"],
    }
    uid = kwok.plane.admin.create(owner)["metadata"]["uid"]
    cells = {(devices[i % len(devices)].name, member): 8 for i, member in enumerate(DIGESTS)}
    made: dict[str, Any] = {}
    for o in children(make_ensemble(name), uid, [make_plan(devices, cells)], DIGESTS, SETTINGS):
        o["metadata"]["namespace"] = namespace
        made = kwok.plane.admin.create(o)
    return made


def where(kwok: Kwok, pod: dict[str, Any]) -> str:
    return str(kwok.plane.admin.get(kwok.plane.admin.path(pod))["spec"].get("nodeName", ""))


def why_not(kwok: Kwok, pod: dict[str, Any]) -> str:
    """What the scheduler says of a pod that waits."""
    conditions = kwok.plane.admin.get(kwok.plane.admin.path(pod)).get("status", {}).get("conditions", ())
    return " ".join(c.get("message", "") for c in conditions if c["type"] == "PodScheduled")


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param([gpu("gpu0", "put-labels"), gpu("gpu1", "put-labels")], id="anonymous GPUs"),
        pytest.param([cpu("cpu0", "put-cores"), cpu("cpu1", "put-cores")], id="all cores of a node"),
    ],
)
def test_a_pod_lands_on_the_node_of_its_plan(
    kwok: Kwok, nodes: list[str], namespace: str, devices: list[Device]
) -> None:
    pod = deployed(kwok, namespace, "lands", devices)
    wait_for(lambda: where(kwok, pod) == devices[0].node, f"a place on {devices[0].node}")


def test_a_pod_gets_the_very_gpus_of_its_plan(kwok: Kwok, nodes: list[str], namespace: str) -> None:
    known = uuids(kwok)
    last, first = sorted(known)[-1], sorted(known)[0]
    devices = [gpu(name, "put-slices", uuid=known[name]) for name in (last, first)]
    pod = deployed(kwok, namespace, "pinned", devices)
    wait_for(lambda: where(kwok, pod) == "put-slices", "a place on put-slices")
    (claim,) = kwok.plane.admin.items(f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims")
    results = claim["status"]["allocation"]["devices"]["results"]
    assert {result["device"] for result in results} == {first, last}
    assert claim["metadata"]["labels"]["ensembles.dev/ensemble"] == "pinned"


def test_a_gpu_that_is_not_there_is_waited_for(kwok: Kwok, nodes: list[str], namespace: str) -> None:
    pod = deployed(kwok, namespace, "absent", [gpu("gpu-9", "put-slices", uuid="GPU-none")])
    wait_for(lambda: "cannot allocate all claims" in why_not(kwok, pod), "the scheduler to say why")
    assert where(kwok, pod) == ""


def test_a_pod_that_does_not_fit_goes_nowhere_else(kwok: Kwok, nodes: list[str], namespace: str) -> None:
    pod = deployed(kwok, namespace, "waits", [gpu(f"gpu{i}", "put-labels") for i in range(3)])
    wait_for(lambda: "Insufficient nvidia.com/gpu" in why_not(kwok, pod), "the scheduler to say why")
    assert where(kwok, pod) == ""
