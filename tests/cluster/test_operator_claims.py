"""GPUs that drivers publish in ResourceSlices, served by the real operator: its pods claim those of their plans."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from beds.client import Manifest
from beds.kwok import Kwok, node, resource_slice
from beds.operating import A100, ENSEMBLES, Operator, Space, digest
from beds.processes import wait_for
from ensemble_runtime.report import pack

pytestmark = pytest.mark.timeout(300)

GROUP = "/apis/resource.k8s.io/v1"
NVIDIA, OTHER = "gpu.nvidia.com", "gpu.example.com"
SETTINGS = {"dra_drivers": '{"gpu.example.com": {"product": "model", "uuid": "serial"}}'}


def device_class(driver: str) -> Manifest:
    selectors = [{"cel": {"expression": f'device.driver == "{driver}"'}}]
    kind = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass"}
    return {**kind, "metadata": {"name": driver}, "spec": {"selectors": selectors}}


def in_other_words(name: str) -> Manifest:
    """What a driver publishes that calls things otherwise than NVIDIA's."""
    found = copy.deepcopy(resource_slice(name, count=2, driver=OTHER))
    for i, device in enumerate(found["spec"]["devices"]):
        device["attributes"] = {"serial": {"string": f"SN-{i}"}, "model": {"string": A100}}
    return found


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    """Two nodes of two GPUs each from NVIDIA's driver, and one of another's."""
    names = kwok.add(*(node(f"claim-{name}", labels={"pool": "claims"}) for name in "ab"), node("claim-other"))
    for driver in (NVIDIA, OTHER):
        kwok.plane.admin.apply(device_class(driver))
    for published in (*(resource_slice(name, count=2) for name in names[:2]), in_other_words(names[2])):
        kwok.plane.admin.create(published)
    yield names
    kwok.remove(names)


def apply(space: Space, name: str, members: Mapping[str, float], most: int = 2, **spec: Any) -> None:
    """An ensemble on the nodes of NVIDIA's driver."""
    devices = {"kinds": ["GPU"], "max": most}
    space.apply(name, members, devices=devices, placement={"nodeSelector": {"pool": "claims"}}, **spec)


def settled(space: Space, operator: Operator, name: str) -> None:
    space.wait(name)
    space.wait(name, "Progressing", "False")
    operator.idle()


def planned(space: Space, name: str) -> set[tuple[str, str, str]]:
    """Node, device and UUID of each row of the plan."""
    return {(row["node"], row["device"], row["uuid"]) for row in space.status(name)["matrix"]}


def claims(space: Space) -> list[Manifest]:
    return space.plane.admin.items(f"{GROUP}/namespaces/{space.namespace}/resourceclaims")


def templates(space: Space) -> set[str]:
    found = space.plane.admin.items(f"{GROUP}/namespaces/{space.namespace}/resourceclaimtemplates")
    return {template["metadata"]["name"] for template in found}


def allocated(space: Space) -> list[tuple[str, str]]:
    """Pool and device of all that the scheduler has handed out."""
    results = [
        r for c in claims(space) for r in c["status"].get("allocation", {}).get("devices", {}).get("results", ())
    ]
    return sorted((result["pool"], result["device"]) for result in results)


def names(space: Space, name: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in space.pods(name)}


def test_pods_get_the_gpus_of_their_plans_and_give_them_back(space: Space, operator: Operator) -> None:
    for name in ("one", "two"):
        apply(space, name, {"a": 1.0, "b": 1.0})
        settled(space, operator, name)

    both = planned(space, "one") | planned(space, "two")
    assert len(both) == 4 and all(uuid == f"GPU-{home}-{slot[-1]}" for home, slot, uuid in both)
    assert allocated(space) == sorted((home, slot) for home, slot, _ in both)
    assert templates(space) == names(space, "one") | names(space, "two")
    assert {p["spec"]["nodeName"] for p in space.pods("one")} == {home for home, _, _ in planned(space, "one")}

    space.delete("one")
    wait_for(lambda: templates(space) == names(space, "two"), "no template is left of it")
    wait_for(lambda: len(allocated(space)) == 2, "its claim is gone")


def test_an_edit_without_room_beside_takes_the_same_gpus_anew(space: Space, operator: Operator) -> None:
    apply(space, "full", {"a": 1.0, "b": 1.0}, replicas=2)
    wait_for(lambda: space.status("full").get("readyReplicas") == 2, "two copies on all four")
    before, gpus = names(space, "full"), planned(space, "full")

    apply(space, "full", {"a": 2.0, "b": 1.0}, replicas=2)
    wait_for(lambda: not before & names(space, "full"), "other pods")
    settled(space, operator, "full")

    assert planned(space, "full") == gpus and len(allocated(space)) == 4
    assert templates(space) == names(space, "full") and len(claims(space)) == 2


def publish(space: Space, name: str, generation: int, uuids: Mapping[str, str], part: int = 1, of: int = 1) -> None:
    """A part of what the node's driver tells: UUIDs by the devices' names."""
    made = resource_slice(name, count=len(uuids), generation=generation)
    made["metadata"]["name"] += f"-{part}"
    made["spec"]["pool"]["resourceSliceCount"] = of
    for device, (slot, uuid) in zip(made["spec"]["devices"], uuids.items(), strict=True):
        device |= {"name": slot}
        device["attributes"]["uuid"] = {"string": uuid}
    space.plane.admin.create(made)


def test_only_the_newest_complete_generation_of_a_pool_counts(space: Space, operator: Operator, kwok: Kwok) -> None:
    (name,) = kwok.add(node("claim-grows", labels={"pool": "grows"}))
    publish(space, name, 1, {"gpu-0": "GPU-0"})
    try:
        on = {"placement": {"nodeSelector": {"pool": "grows"}}, "devices": {"kinds": ["GPU"], "max": 1}}
        space.apply("stays", {"a": 1.0}, **on)
        settled(space, operator, "stays")
        before = {pod["metadata"]["uid"] for pod in space.pods("stays")}

        publish(space, name, 2, {"gpu-0": "GPU-0", "gpu-1": "GPU-1"}, part=1, of=2)
        space.apply("waits", {"b": 1.0}, **on)
        wait_for(lambda: space.condition("waits", "Planned")[0] == "False", "it has to wait")
        operator.idle()
        assert space.status("waits")["inventory"]["devices"] == 1

        publish(space, name, 2, {"gpu-2": "GPU-2"}, part=2, of=2)
        settled(space, operator, "waits")
        assert planned(space, "waits") == {(name, "gpu-1", "GPU-1")}
        assert {pod["metadata"]["uid"] for pod in space.pods("stays")} == before
        space.clear()
    finally:
        kwok.remove([name])


def test_another_gpu_under_the_old_name_is_another_gpu(space: Space, operator: Operator, kwok: Kwok) -> None:
    (name,) = kwok.add(node("claim-swap", labels={"pool": "swap"}))
    publish(space, name, 1, {"gpu-0": "GPU-old", "gpu-1": "GPU-same"})
    try:
        on = {"placement": {"nodeSelector": {"pool": "swap"}}, "devices": {"kinds": ["GPU"], "max": 1}}
        for ensemble in ("swapped", "other"):
            space.apply(ensemble, {"a": 1.0}, **on)
            settled(space, operator, ensemble)
        assert planned(space, "swapped") == {(name, "gpu-0", "GPU-old")}
        before = {pod["metadata"]["uid"] for pod in space.pods("other")}

        publish(space, name, 2, {"gpu-0": "GPU-new", "gpu-1": "GPU-same"})
        wait_for(lambda: planned(space, "swapped") == {(name, "gpu-0", "GPU-new")}, "a plan for the new one")
        settled(space, operator, "swapped")

        assert {pod["metadata"]["uid"] for pod in space.pods("other")} == before
        (pod,) = names(space, "swapped")
        asked = space.plane.admin.get(f"{GROUP}/namespaces/{space.namespace}/resourceclaimtemplates/{pod}")
        (request,) = asked["spec"]["spec"]["devices"]["requests"]
        assert "GPU-new" in request["exactly"]["selectors"][0]["cel"]["expression"]
        space.clear()
    finally:
        kwok.remove([name])


def test_another_driver_is_asked_in_its_own_words(space: Space, operator: Operator) -> None:
    place = {"nodeSelector": {"kubernetes.io/hostname": "claim-other"}}
    space.apply("other", {"a": 1.0}, placement=place, devices={"kinds": ["GPU"], "max": 1})
    settled(space, operator, "other")

    (claim,) = claims(space)
    (request,) = claim["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == OTHER
    (result,) = claim["status"]["allocation"]["devices"]["results"]
    assert (result["driver"], result["device"]) == (OTHER, space.status("other")["matrix"][0]["device"])


def test_a_claimed_gpu_is_measured_on_and_given_back(space: Space, operator: Operator, kwok: Kwok) -> None:
    apply(space, "fresh", {"new": 1.0}, most=1)
    wait_for(lambda: any(p["spec"].get("nodeName") for p in space.pods("fresh")), "a profiling pod on its node")
    (pod,) = space.pods("fresh")
    assert len(allocated(space)) == 1 and templates(space) == {pod["metadata"]["name"]}

    point = {"digest": digest("new"), "deviceType": A100, "precision": "FP32", "seconds": 0.01, "memoryBytes": 2**30}
    kwok.finish(pod, message=pack([point | {"batchSize": size} for size in (1, 8)]))
    settled(space, operator, "fresh")

    assert templates(space) == names(space, "fresh") and pod["metadata"]["name"] not in templates(space)
    assert allocated(space) == [(home, slot) for home, slot, _ in planned(space, "fresh")]
    profiles = space.plane.admin.items(f"{ENSEMBLES}/namespaces/{space.namespace}/modelprofiles")
    assert digest("new") in {p["spec"]["model"]["sha256"] for p in profiles}
