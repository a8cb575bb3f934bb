"""How what members cost is measured, with the real operator on a real API server."""

from __future__ import annotations

import json

import pytest

from beds.client import Manifest
from beds.kwok import Kwok, gpu_node
from beds.operating import A100, ENSEMBLES, Operator, Space, digest, ensemble
from beds.processes import wait_for
from ensemble_runtime.report import pack

pytestmark = pytest.mark.timeout(300)
NODES = (gpu_node("measure-a", count=4), gpu_node("measure-b", count=4))


def measuring(space: Space, name: str, but_on: str = "") -> Manifest:
    """The pod that measures for an ensemble, as soon as it is on a node, other than one."""

    def there() -> list[Manifest]:
        return [p for p in space.items("pods", name) if p["spec"].get("nodeName") not in (None, but_on)]

    wait_for(lambda: len(there()) == 1, "a profiling pod on a node")
    (pod,) = there()
    return pod


def test_what_is_not_profiled_is_measured_first_and_the_profile_is_kept(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    space.apply("fresh", {"new": 1.0})
    pod = measuring(space, "fresh")
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "profiler"
    space.wait("fresh", "Profiled", "False")
    assert space.condition("fresh", "Profiled")[1] == "Profiling"

    points = [
        {
            "digest": digest("new"),
            "deviceType": A100,
            "precision": "FP32",
            "batchSize": size,
            "seconds": 0.01,
            "memoryBytes": 2**30,
        }
        for size in (1, 8)
    ]
    kwok.finish(pod, message=pack(points))

    space.wait("fresh")
    operator.idle()
    assert space.condition("fresh", "Profiled")[:2] == ("True", "Measured")
    assert [p["metadata"]["labels"]["app.kubernetes.io/component"] for p in space.items("pods", "fresh")] == ["shard"]
    assert len(space.made("fresh")["configmaps"]) == 1
    profiles = space.plane.admin.items(f"{ENSEMBLES}/namespaces/{space.namespace}/modelprofiles")
    (kept,) = [p for p in profiles if p["spec"]["model"]["sha256"] == digest("new")]
    assert [p["batchSize"] for p in kept["spec"]["points"]] == [1, 8] and "ownerReferences" not in kept["metadata"]


def test_what_two_devices_cost_together_is_measured_and_kept_and_planned_with(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    """A recurrent member that fits no GPU whole, and does with a share of its operators on a core beside it."""
    for kind in (A100, "cpu-1"):
        space.profiles("rnn", device_type=kind, memory_mib=45_000)
    wanted = ensemble("split", space.namespace, {"rnn": 1.0}, devices={"kinds": ["GPU", "CPU"]})
    member = {"partition": {"objective": "Memory", "latencyMs": 50}, "deviceKinds": ["GPU", "CPU"]}
    wanted["spec"]["members"][0] |= member
    space.plane.admin.apply(wanted)
    pod = measuring(space, "split")
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "profiler"
    held = json.loads(pod["metadata"]["annotations"]["ensembles.dev/devices"])
    assert [device["type"] for device in held] == [A100, "cpu-1"]
    (container,) = pod["spec"]["containers"]
    assert "partition" in container["command"] and container["resources"]["limits"]["cpu"] == "2"

    point = {"digest": digest("rnn"), "deviceType": f"{A100}:cpu-1", "precision": "FP32", "seconds": 0.01}
    found = [point | {"batchSize": size, "memoryBytes": 9_000 * 2**20, "secondBytes": 1_500 * 2**20} for size in (1, 8)]
    kwok.finish(pod, message=pack(found))
    space.wait("split")
    (served,) = space.pods("split")
    held = json.loads(served["metadata"]["annotations"]["ensembles.dev/devices"])
    assert sorted(device["type"] for device in held) == [A100, "cpu-1"]
    profiles = space.plane.admin.items(f"{ENSEMBLES}/namespaces/{space.namespace}/modelprofiles")
    (kept,) = [p for p in profiles if p["spec"]["deviceType"] == f"{A100}:cpu-1"]
    assert kept["spec"]["partition"] == {"objective": "Memory", "latencyMs": 50}
    assert [p["secondMemoryMib"] for p in kept["spec"]["points"]] == [1_500, 1_500]


def test_a_measurement_on_a_node_that_is_lost_is_taken_elsewhere(space: Space, operator: Operator, kwok: Kwok) -> None:
    space.apply("moves", {"moved": 1.0})
    lost = measuring(space, "moves")["spec"]["nodeName"]
    kwok.lose(lost)
    try:
        pod = measuring(space, "moves", but_on=lost)
        point = {"digest": digest("moved"), "deviceType": A100, "precision": "FP32", "seconds": 0.01}
        kwok.finish(pod, message=pack([point | {"batchSize": size, "memoryBytes": 2**30} for size in (1, 8)]))
        space.wait("moves")
    finally:
        kwok.find(lost)


def test_what_nobody_can_measure_while_its_nodes_are_away_is_measured_when_they_are_back(
    space: Space, operator: Operator, kwok: Kwok, nodes: list[str]
) -> None:
    space.apply("waits", {"kept": 1.0})
    measuring(space, "waits")
    try:
        for name in nodes:
            kwok.lose(name)
        wait_for(lambda: not space.items("pods", "waits"), "the end of a pod that measures nothing")
        wait_for(lambda: "2 NotReady" in space.condition("waits", "Planned")[2], "the condition names what is missing")
    finally:
        for name in nodes:
            kwok.find(name)
    measuring(space, "waits")


def test_a_measurement_that_fails_says_why_and_is_not_repeated_at_once(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    space.apply("broken", {"gone": 1.0})
    kwok.finish(measuring(space, "broken"), 66, "cannot fetch https://models/gone.onnx: 404")

    wait_for(lambda: space.condition("broken", "Profiled")[1] == "ProfilingFailed", "the condition")
    operator.idle()
    assert (
        "gone on NVIDIA-A100-SXM4-40GB: cannot fetch https://models/gone.onnx: 404"
        in space.condition("broken", "Profiled")[2]
    )
    assert not space.items("pods", "broken")
