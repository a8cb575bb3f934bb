"""A copy that no single node can hold, served by the real operator: a head and its shards, and all between them."""

from __future__ import annotations

import json

import pytest

from beds.client import Manifest
from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)
NODES = tuple(gpu_node(f"span-{i}", count=1) for i in range(3))
COSTS = {"memory_mib": 30 * 1024}

NETWORK = "/apis/networking.k8s.io/v1"
WIDE = {"a": 1.0, "b": 1.0}
"""Two members, of which a node holds one."""


def settled(space: Space, operator: Operator, name: str = "wide") -> None:
    space.wait(name)
    space.wait(name, "Progressing", "False")
    operator.idle()


def by_role(space: Space) -> dict[str, Manifest]:
    return {pod["metadata"]["labels"]["ensembles.dev/role"]: pod for pod in space.pods("wide")}


def config(space: Space, pod: Manifest) -> dict:
    (name,) = (v["configMap"]["name"] for v in pod["spec"]["volumes"] if v["name"] == "config")
    found = space.plane.admin.get(f"/api/v1/namespaces/{space.namespace}/configmaps/{name}")
    return json.loads(found["data"]["config.json"])


def between(space: Space) -> dict[str, list[str]]:
    """What the shards of the ensemble share, by kind."""
    found = {
        "services": space.items("services", "wide"),
        "networkpolicies": space.items("networkpolicies", "wide", NETWORK),
        "secrets": space.items("secrets", "wide"),
    }
    return {kind: sorted(o["metadata"]["name"] for o in objects) for kind, objects in found.items()}


def test_a_copy_on_two_nodes_is_a_head_and_a_shard_that_know_each_other(space: Space, operator: Operator) -> None:
    space.apply("wide", WIDE)
    settled(space, operator)

    pods = by_role(space)
    assert pods.keys() == {"head", "shard"} and len(space.pods("wide")) == 2
    homes = {pod["spec"]["nodeName"] for pod in pods.values()}
    assert homes == {row["node"] for row in space.status("wide")["matrix"]} and len(homes) == 2
    head, shard = config(space, pods["head"]), config(space, pods["shard"])
    assert {m["name"] for m in head["members"]} == {"a", "b"} and len(shard["members"]) == 1 and "shard" in shard
    (remote,) = head["remotes"]
    assert remote["url"] == f"http://{pods['shard']['metadata']['name']}.wide-shards:8000"
    shared = {"services": ["wide", "wide-shards"], "networkpolicies": ["wide-shards"], "secrets": ["wide-token"]}
    assert between(space) == shared
    (door,) = (s for s in space.items("services", "wide") if s["metadata"]["name"] == "wide")
    assert door["spec"]["selector"].items() <= pods["head"]["metadata"]["labels"].items()
    assert not door["spec"]["selector"].items() <= pods["shard"]["metadata"]["labels"].items()
    status = space.status("wide")
    assert (status["nodes"], status["members"], status["readyReplicas"]) == (2, "2/2", 1)


def test_a_restart_leaves_both_and_a_shard_that_goes_comes_back(space: Space, operator: Operator) -> None:
    space.apply("wide", WIDE)
    settled(space, operator)
    before = {role: pod["metadata"]["uid"] for role, pod in by_role(space).items()}
    secrets = [secret["data"] for secret in space.items("secrets", "wide")]

    operator.restart()
    operator.idle()
    assert {role: pod["metadata"]["uid"] for role, pod in by_role(space).items()} == before

    name = by_role(space)["shard"]["metadata"]["name"]
    space.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}/pods/{name}")
    wait_for(lambda: "shard" in by_role(space), "the shard again")
    settled(space, operator)
    after = by_role(space)
    assert after["head"]["metadata"]["uid"] == before["head"]
    assert after["shard"]["metadata"]["name"] == name and after["shard"]["metadata"]["uid"] != before["shard"]
    assert [secret["data"] for secret in space.items("secrets", "wide")] == secrets


def test_it_narrows_to_one_node_and_widens_again(space: Space, operator: Operator) -> None:
    space.apply("wide", WIDE)
    settled(space, operator)

    space.apply("wide", {"a": 1.0})
    settled(space, operator)
    assert len(space.pods("wide")) == 1 and space.status("wide")["nodes"] == 1
    assert between(space)["services"] == ["wide"] and between(space)["networkpolicies"] == []

    space.apply("wide", WIDE)
    settled(space, operator)
    assert by_role(space).keys() == {"head", "shard"} and len(between(space)["services"]) == 2


def test_a_lost_node_takes_the_copy_to_the_spare_one(space: Space, operator: Operator, kwok: Kwok) -> None:
    space.apply("wide", WIDE)
    settled(space, operator)
    lost = by_role(space)["shard"]["spec"]["nodeName"]
    kwok.lose(lost)
    try:
        wait_for(lambda: lost not in {row["node"] for row in space.status("wide")["matrix"]}, "a plan without it")
        wait_for(lambda: space.status("wide").get("nodes") == 2, "two nodes again")
    finally:
        kwok.find(lost)
    settled(space, operator)
    assert len({pod["spec"]["nodeName"] for pod in space.pods("wide")}) == 2


def test_deleted_it_leaves_nothing(space: Space, operator: Operator) -> None:
    space.apply("wide", WIDE)
    settled(space, operator)

    space.delete("wide")
    wait_for(lambda: not any((*space.made("wide").values(), *between(space).values())), "nothing is left")
