"""The operator killed, and the cluster failing around it: the end state is always right, and no pod is made twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from beds.controlplane import ControlPlane
from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(900)

KILLS = 50


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    names = kwok.add(*(gpu_node(f"fault-{i}", count=4) for i in range(3)))
    yield names
    kwok.remove(names)


@pytest.fixture
def operator(kwok: Kwok, nodes: list[str]) -> Iterator[Operator]:
    with Operator(kwok.plane) as running:
        yield running


@pytest.fixture
def space(kwok: Kwok, nodes: list[str], namespace: str) -> Space:
    found = Space(kwok.plane, namespace)
    found.profiles("a", "b", "c")
    return found


def as_wanted(space: Space, wanted: dict[str, dict]) -> bool:
    """Whether there is exactly what the ensembles ask for: pods, ConfigMaps, Services and budgets."""
    for name, spec in wanted.items():
        status, made = space.status(name), space.made(name)
        copies = spec.get("replicas", 1)
        ensemble = space.ensemble(name)
        if status.get("observedGeneration") != ensemble["metadata"]["generation"]:
            return False
        if status.get("readyReplicas") != copies or len(made["pods"]) != copies:
            return False
        if made["services"] != [name] or len(made["poddisruptionbudgets"]) != (copies > 1):
            return False
        configs = space.items("configmaps", name)
        if {c["metadata"]["name"] for c in configs} != {
            v["configMap"]["name"] for p in space.pods(name) for v in p["spec"]["volumes"] if v["name"] == "config"
        }:
            return False
        for written in configs:
            served = {m["name"]: m.get("weight", 1.0) for m in json.loads(written["data"]["config.json"])["members"]}
            if served != spec["members"]:
                return False
    owners = {pod["metadata"]["labels"]["ensembles.dev/ensemble"] for pod in space.items("pods")}
    return owners <= wanted.keys()


def test_killed_at_random_points_it_comes_to_the_right_end(space: Space, kwok: Kwok) -> None:
    random_ = random.Random(20251)
    wanted: dict[str, dict] = {}
    mark = kwok.plane.mark()

    def change() -> None:
        name = random_.choice("uvw")
        if name in wanted and random_.random() < 0.3:
            space.delete(name)
            del wanted[name]
            return
        members = {m: float(random_.randint(1, 3)) for m in random_.sample("abc", random_.randint(1, 2))}
        copies = random_.randint(1, 2)
        # Each copy has at most one device, so that all three ensembles always fit.
        space.apply(name, members, replicas=copies, devices={"kinds": ["GPU"], "max": 1})
        wanted[name] = {"members": members, "replicas": copies}

    operator = Operator(kwok.plane)
    try:
        for _ in range(KILLS):
            operator.start()
            change()
            time.sleep(random_.uniform(0.3, 3.5))  # starting takes about a second and a half
            operator.program.kill()
        operator.start()
        wait_for(lambda: as_wanted(space, wanted), "exactly what is wanted", 120)
        operator.idle(2.0)
        assert as_wanted(space, wanted)
        for pod in space.pods():
            assert Counter(p["metadata"]["name"] for p in space.items("pods"))[pod["metadata"]["name"]] == 1
        assert no_device_is_held_twice(space)
        assert not [
            r for r in kwok.plane.requests(since=mark) if r.code == 409 and r.verb == "create" and r.resource == "pods"
        ]
    finally:
        operator.program.kill()
        space.clear()


def no_device_is_held_twice(space: Space) -> bool:
    held = Counter(
        (device["node"], device["name"])
        for pod in space.pods()
        for device in json.loads(pod["metadata"]["annotations"]["ensembles.dev/devices"])
    )
    return all(count == 1 for count in held.values())


def uids(space: Space) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in space.pods()}


def test_a_restart_restarts_no_pod_and_writes_nothing(space: Space, operator: Operator) -> None:
    space.apply("digits", {"a": 1.0, "b": 1.0}, replicas=2)
    space.wait("digits", "Progressing", "False")
    operator.idle()
    before = uids(space)
    operator.program.kill()
    mark = space.plane.mark()
    operator.start()
    operator.idle(3.0)

    assert uids(space) == before
    writes = [r for r in space.plane.requests("admin", mark) if r.verb not in ("get", "list", "watch")]
    assert not [w for w in writes if w.resource != "leases"]  # those are the nodes' own, which KWOK renews
    space.clear()


def test_an_upgrade_with_other_images_restarts_no_pod(space: Space, kwok: Kwok) -> None:
    with Operator(kwok.plane) as old:
        space.apply("digits")
        space.wait("digits")
        old.idle()
        before = uids(space)
    with Operator(kwok.plane, runtime_image_onnx="runtime:onnx-2", runtime_image_full="runtime:full-2") as new:
        new.idle(2.0)
        assert uids(space) == before
        space.clear()


def test_the_api_server_may_go_away_and_come_back(
    space: Space, operator: Operator, control_plane: ControlPlane
) -> None:
    space.apply("digits")
    space.wait("digits")
    before = uids(space)

    with control_plane.without_apiserver():
        time.sleep(3)
    space.apply("others", {"c": 1.0})
    space.wait("others")
    space.wait("digits")

    assert uids(space).items() >= before.items()
    assert operator.program.running()
    space.clear()


def test_one_that_starts_while_the_api_server_is_away_waits_for_it(
    space: Space, kwok: Kwok, control_plane: ControlPlane
) -> None:
    operator = Operator(kwok.plane)
    try:
        with control_plane.without_apiserver():
            operator.start()
            wait_for(lambda: any("waits for the API" in line["message"] for line in operator.log()), "it says so")
        space.apply("digits")
        space.wait("digits")
        assert operator.program.running()
        space.clear()
    finally:
        operator.program.kill()


def test_a_slow_store_delays_and_breaks_nothing(space: Space, operator: Operator, control_plane: ControlPlane) -> None:
    space.apply("digits")
    with control_plane.held(control_plane.etcd):
        time.sleep(5)
    space.wait("digits")
    operator.idle()

    assert len(space.pods("digits")) == 1 and operator.healthy()
    space.clear()


def test_a_held_operator_sees_on_waking_what_it_missed(space: Space, operator: Operator) -> None:
    space.apply("digits")
    space.wait("digits")
    operator.program.hold()
    space.apply("digits", {"a": 3.0})
    space.apply("others", {"b": 1.0})
    time.sleep(2)
    operator.program.resume()

    space.wait("others")
    space.wait("digits")
    wait_for(lambda: as_wanted(space, {"digits": {"members": {"a": 3.0}}, "others": {"members": {"b": 1.0}}}), "all")
    space.clear()


def devices_of(space: Space, name: str) -> set[tuple[str, str]]:
    return {(row["node"], row["device"]) for row in space.status(name)["matrix"]}


def test_a_lost_node_moves_only_what_was_on_it(space: Space, operator: Operator, kwok: Kwok) -> None:
    for name in ("one", "two", "three"):
        space.apply(name, {"a": 1.0}, devices={"kinds": ["GPU"], "max": 3})
        space.wait(name)
    operator.idle()
    before, homes = uids(space), {p["metadata"]["name"]: p["spec"]["nodeName"] for p in space.pods()}
    lost = sorted(homes.values())[0]

    kwok.lose(lost)
    try:
        wait_for(
            lambda: all(node != lost for name in ("one", "two", "three") for node, _ in devices_of(space, name)),
            "no device of the lost node",
        )
        stayed = {name: uid for name, uid in before.items() if homes[name] != lost}
        operator.idle()
        assert uids(space).items() >= stayed.items()
    finally:
        kwok.find(lost)
    for name in ("one", "two", "three"):
        space.wait(name)
    space.clear()


def test_cordoned_a_node_keeps_its_pods_and_gets_none_and_tainted_it_loses_them(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    space.apply("first", {"a": 1.0})
    space.wait("first")
    (pod,) = space.pods("first")
    home = pod["spec"]["nodeName"]
    kwok.cordon(home)
    try:
        operator.idle()
        space.apply("second", {"b": 1.0}, replicas=2)
        space.wait("second")
        operator.idle()
        assert {p["spec"]["nodeName"] for p in space.pods("second")} & {home} == set()
        assert uids(space)[pod["metadata"]["name"]] == pod["metadata"]["uid"]
    finally:
        kwok.cordon(home, on=False)

    kwok.taint(home, {"key": "broken", "effect": "NoExecute"})
    try:
        wait_for(
            lambda: {p["spec"].get("nodeName") for p in space.pods("first")} not in ({home}, set()), "another node"
        )
        space.wait("first")
    finally:
        kwok.taint(home)
    space.clear()


def test_what_waits_is_served_when_a_node_joins(space: Space, operator: Operator, kwok: Kwok) -> None:
    for kind in ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB"):
        space.profiles("big", memory_mib=70 * 1024, device_type=kind)
    space.apply("big", {"big": 1.0})
    space.wait("big", "Planned", "False")

    names = kwok.add(gpu_node("fault-joins", "NVIDIA-A100-SXM4-80GB", 1, 81920))
    try:
        space.wait("big")
        assert devices_of(space, "big") == {("fault-joins", "gpu0")}
        space.clear()
    finally:
        kwok.remove(names)
