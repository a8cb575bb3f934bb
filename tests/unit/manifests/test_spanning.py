"""A copy on several nodes: a head that knows the others, and shards that answer to it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sample_plans import DIGESTS, SETTINGS, UID, children, cpu, gpu, make_ensemble, make_plan_on

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.deployment import copy_objects, spans_nodes
from ensemble_operator.manifests.objects import Owner
from ensemble_operator.manifests.token import TOKEN_FILE, token_secret
from ensemble_runtime.config import RuntimeConfig

Object = dict[str, Any]

plans = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.sampled_from(list(DIGESTS)), st.sampled_from([1, 8, 32])),
    min_size=1,
    max_size=12,
    unique_by=lambda cell: cell[:3],
).map(lambda cells: [*cells, *(("a", 3, m, 8) for m in DIGESTS)])


def deployed(cells: list[tuple[str, int, str, int]]) -> list[tuple[Object, RuntimeConfig]]:
    """Pods with their configurations, the head first."""
    devices = [gpu(f"gpu{i}", node) if i % 2 else cpu(f"cpu{i}", node) for node in "abc" for i in range(4)]
    named = [(node, f"gpu{i}" if i % 2 else f"cpu{i}", m, size) for node, i, m, size in cells]
    ensemble = make_ensemble(serving={"quorum": {"minMembers": 2, "deadlineMs": 5}})
    objects = copy_objects(ensemble, UID, 0, make_plan_on(devices, named), DIGESTS, SETTINGS)
    configs = {o["metadata"]["name"]: o["data"]["config.json"] for o in objects if o["kind"] == "ConfigMap"}
    pods = [o for o in objects if o["kind"] == "Pod"]
    names = [pod["spec"]["volumes"][0]["configMap"]["name"] for pod in pods]
    return [(pod, RuntimeConfig.model_validate_json(configs[name])) for pod, name in zip(pods, names, strict=True)]


@settings(deadline=None)
@given(plans)
def test_every_cell_is_served_once_and_the_head_reaches_all(cells: list[tuple[str, int, str, int]]) -> None:
    (head, config), *others = deployed(cells)
    nodes = {node for node, *_ in cells}
    assert len(others) == len(nodes) - 1
    assert head["metadata"]["labels"][labels.ROLE] == "head"
    assert len(config.remotes) == len(others)
    local = {device.name for device in config.devices}
    assert sum(c.device in local for c in config.cells) + sum(len(c.cells) for _, c in others) == len(cells)
    for remote, (pod, shard) in zip(config.remotes, others, strict=True):
        assert pod["metadata"]["labels"][labels.ROLE] == "shard"
        assert remote.url == f"http://{pod['metadata']['name']}.trio-shards:8000"
        assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (pod["metadata"]["name"], "trio-shards")
        assert shard.shard is not None and shard.shard.token_file == remote.token_file == TOKEN_FILE
        handed = {c.member: c.batch_size for c in config.cells if c.device == remote.name}
        assert set(handed) == {member.name for member in shard.members}
        for member, rows in handed.items():
            assert rows == sum(c.batch_size for c in shard.cells if c.member == member)


@settings(deadline=None)
@given(plans)
def test_only_copies_on_several_nodes_have_the_token(cells: list[tuple[str, int, str, int]]) -> None:
    pods = [pod for pod, _ in deployed(cells)]
    for pod in pods:
        secrets = [v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v]
        assert secrets == (["trio-token"] if len(pods) > 1 else [])


def test_the_shards_have_a_service_of_their_own() -> None:
    devices = [cpu("cpu0", "a"), cpu("cpu0", "b")]
    plan = make_plan_on(devices, [("a", "cpu0", "one", 8), ("a", "cpu0", "two", 8), ("b", "cpu0", "three", 8)])
    assert spans_nodes([plan])
    services = {
        o["metadata"]["name"]: o["spec"]
        for o in children(make_ensemble(), UID, [plan], DIGESTS, SETTINGS)
        if o["kind"] == "Service"
    }
    assert set(services) == {"trio", "trio-shards"}
    assert services["trio-shards"]["publishNotReadyAddresses"] is True


def test_each_token_is_another() -> None:
    owner = Owner("trio", "team", UID)
    one, other = (token_secret(owner)["stringData"]["token"] for _ in range(2))
    assert one != other and len(one) >= 40
