"""GPUs: offered or claimed, broken, competed for. Nobody has them: pods come as far as to where CUDA computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from beds.images import RUNTIME
from beds.machines import Machines
from beds.operating import A100
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
NODE = "node-3"
NO_CUDA = "this ONNX Runtime has no CUDA"
LOOK = """
import json
from ensemble_runtime.devices.nvidia import gpus
print(json.dumps([gpu.uuid for gpu in gpus()]))
"""
Make = Callable[..., Served]


def on_gpus(served: Make, name: str, **spec: Any) -> Served:
    """An ensemble, applied, each of whose copies wants one of the node's two GPUs."""
    placement = {"nodeSelector": {"kubernetes.io/hostname": NODE}}
    ensemble = served(name, 1, devices={"kinds": ["GPU"], "max": 1}, placement=placement, **spec)
    ensemble.profiles(A100)
    ensemble.apply()
    return ensemble


def gpus(ensemble: Served) -> dict[str, list[str]]:
    """UUIDs of the GPUs that the kubelet gave to each of its pods, by the pods' uids."""
    found = {}
    for pod in ensemble.space.items("pods", ensemble.name):
        containers = pod["status"].get("containerStatuses", ())
        resources = [r for container in containers for r in container.get("allocatedResourcesStatus", ())]
        found[pod["metadata"]["uid"]] = [one["resourceID"] for r in resources for one in r["resources"]]
    return found


def given(ensemble: Served, count: int) -> dict[str, list[str]]:
    """The same, as soon as so many pods, and no others, have one each."""
    wait_for(lambda: list(map(len, gpus(ensemble).values())) == [1] * count, f"{count} pods on GPUs", 120)
    return gpus(ensemble)


def placed(ensemble: Served) -> dict[str, Any]:
    """The one row of its matrix, as soon as there is one: there is none while its pod is made anew."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = ensemble.space.status(ensemble.name).get("matrix", ())
        return len(found) == 1

    wait_for(there, "one device in its matrix", 60)
    return found[0]


def told(ensemble: Served, words: str) -> None:
    """Wait until the condition says so."""

    def said() -> str:
        return ensemble.space.condition(ensemble.name, "Degraded")[2]

    try:
        wait_for(lambda: words in said(), words, 60)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it says {said()}") from None


def test_a_pod_sees_its_own_gpu_and_another_takes_its_place_when_that_breaks(machines: Machines, served: Make) -> None:
    node = machines.nodes[NODE]
    one = on_gpus(served, "one")
    before = given(one, 1)
    ((own,),) = before.values()
    told(one, f"container runtime ended with 69: gpu0: {NO_CUDA}")
    row = placed(one)
    assert (row["node"], row["device"], row["type"], row["source"]) == (NODE, "gpu0", A100, "Labels")
    node.break_gpus(own)
    try:
        wait_for(lambda: not before.keys() & gpus(one).keys(), "the pod gone", 120)
        ((uuid,),) = given(one, 1).values()
        assert {uuid, own} == set(node.place.gpus)
        assert placed(one)["node"] == NODE
    finally:
        node.break_gpus()
        wait_for(lambda: node.allocatable("nvidia.com/gpu") == 2, "both GPUs back")


def test_a_pod_sees_the_gpu_that_it_claimed(machines: Machines, served: Make) -> None:
    """By UUID, from ResourceSlices; the driver that has prepared the claim brings it into the container by CDI."""
    node = machines.add(claims=True)
    here = {"nodeSelector": {"kubernetes.io/hostname": node.name}, "devicePinning": "Strict"}
    claiming = served("claiming", 1, devices={"kinds": ["GPU"], "max": 1}, placement=here)
    claiming.profiles(A100, memory_mib=1024)
    claiming.apply()
    told(claiming, f"container runtime ended with 69: gpu-0: {NO_CUDA}")
    (pod,) = claiming.pods()
    (device,) = json.loads(pod["metadata"]["annotations"]["ensembles.dev/devices"])
    assert pod["spec"]["nodeName"] == node.name and device["uuid"] in node.place.gpus
    row = placed(claiming)
    assert (row["node"], row["device"], row["type"], row["source"]) == (node.name, "gpu-0", A100, "ResourceSlices")
    (other,) = set(node.place.gpus) - {device["uuid"]}
    assert seen_by_a_claim(machines, claiming.space.namespace) == [other], "the ensemble holds the first"
    claiming.delete()
    wait_for(lambda: not node.prepared(), "the claims given back")
    machines.remove(node.name)


def seen_by_a_claim(machines: Machines, namespace: str) -> list[str]:
    """UUIDs of the GPUs that NVML shows in a pod that claims any one."""
    plane, meta = machines.plane, {"name": "look", "namespace": namespace}
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": meta}
    plane.admin.create(claim | {"spec": {"devices": {"requests": [request]}}})
    container = {
        "name": "look",
        "image": RUNTIME,
        "command": ["python", "-c", LOOK],
        "resources": {"claims": [{"name": "gpu"}]},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "containers": [container],
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "look"}],
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    plane.admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    plane.kubectl("wait", "pod/look", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s", namespace=namespace)
    found: list[str] = json.loads(plane.kubectl("logs", "look", namespace=namespace))
    plane.kubectl("delete", "pod/look", "resourceclaim/look", namespace=namespace)
    return found


def test_priority_takes_gpus_the_loser_says_so_and_gets_them_back(machines: Machines, served: Make) -> None:
    assert len(machines.nodes[NODE].place.gpus) == 2
    first = on_gpus(served, "first", replicas=2)
    given(first, 2)
    late = on_gpus(served, "late")
    late.wait("Planned", "False")
    _, reason, message = late.space.condition("late", "Planned")
    assert reason == "DoesNotFit" and "the best node has no free device" in message and "taken" in message
    urgent = on_gpus(served, "urgent", priority=10, preemption="LowerPriority")
    given(urgent, 1)
    first.wait("Planned", "False")
    _, reason, message = first.space.condition("first", "Planned")
    assert reason == "Preempted" and message.startswith(f"{urgent.space.namespace}/urgent has taken its devices")
    (kept,) = given(first, 1)
    urgent.delete()
    first.wait("Planned", "True")
    assert kept in given(first, 2)
    assert late.space.condition("late", "Planned")[1] == "DoesNotFit"
    first.delete()
    late.wait("Planned", "True")
    given(late, 1)
