"""GPUs that break, and ensembles that compete for them. Nobody has them: pods come as far as to where CUDA computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from beds.machines import Machines
from beds.operating import A100
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
NODE = "node-3"
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


def told(ensemble: Served, *words: str) -> None:
    """Wait until the condition says so."""

    def said() -> str:
        return ensemble.space.condition(ensemble.name, "Degraded")[2]

    try:
        wait_for(lambda: all(each in said() for each in words), f"{words}", 60)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it says {said()}") from None


def test_a_pod_sees_its_own_gpu_and_another_takes_its_place_when_that_breaks(machines: Machines, served: Make) -> None:
    node = machines.nodes[NODE]
    one = on_gpus(served, "one")
    before = given(one, 1)
    ((own,),) = before.values()
    told(one, "container runtime ended with 69: ", "gpu0: this ONNX Runtime has no CUDA")
    (row,) = one.space.status(one.name)["matrix"]
    assert (row["node"], row["device"], row["type"], row["source"]) == (NODE, "gpu0", A100, "Labels")
    node.break_gpus(own)
    try:
        wait_for(lambda: not before.keys() & gpus(one).keys(), "the pod gone", 120)
        ((uuid,),) = given(one, 1).values()
        assert {uuid, own} == set(node.place.gpus)
        (row,) = one.space.status(one.name)["matrix"]
        assert row["node"] == NODE
    finally:
        node.break_gpus()
        wait_for(lambda: node.allocatable("nvidia.com/gpu") == 2, "both GPUs back")


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
