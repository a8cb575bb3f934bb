"""The whole inventory, and its invariants."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.api.placement import Toleration
from ensemble_operator.inventory.claim_record import allocated
from ensemble_operator.inventory.cpu import cores_of, cpu_devices
from ensemble_operator.inventory.node import Inventory, Node
from ensemble_operator.inventory.node_record import node_record
from ensemble_operator.inventory.pod_record import claimed, held_devices
from ensemble_operator.inventory.slices import slice_record
from ensemble_operator.inventory.static import static_inventory
from ensemble_operator.inventory.survey import inventory
from ensemble_operator.inventory.terms import Terms, leaves, refusal


def survey(nodes: list[Any], pods: Any = (), slices: Any = (), claims: Any = (), **more: Any) -> Inventory:
    uses = [use for pod in pods if (use := claimed(pod))]
    return inventory(
        [node_record(node) for node in nodes],
        uses,
        [slice_record(s) for s in slices],
        [use for claim in claims if (use := allocated(claim))],
        held=held_devices(uses),
        **more,
    )


def only(found: Inventory) -> Node:
    (node,) = found.nodes
    return node


def test_each_node_is_read_from_the_source_that_it_has(bodies: Any) -> None:
    nodes = [bodies.node("plugin"), bodies.node("dra", gpus=None, labels={}), bodies.node("cpu", gpus=0, labels={})]
    found = survey(nodes, slices=[bodies.slice_([bodies.gpu("gpu-0")], node="dra", pool="dra")])
    assert [(n.name, n.source, len(n.devices)) for n in found.nodes] == [
        ("cpu", "None", 0),
        ("dra", "ResourceSlices", 1),
        ("plugin", "Labels", 2),
    ]


def test_a_node_with_both_a_driver_and_a_plugin_is_refused(bodies: Any) -> None:
    node = only(survey([bodies.node()], slices=[bodies.slice_([bodies.gpu("gpu-0")])]))
    assert node.devices == ()
    assert "both" in node.notes[0]


def test_slices_of_strangers_are_told_of_and_change_nothing(bodies: Any) -> None:
    node = only(survey([bodies.node()], slices=[bodies.slice_([bodies.gpu("nic-0")], driver="nic.example.com")]))
    assert (node.source, len(node.devices)) == ("Labels", 2)
    assert "nic.example.com" in node.notes[0]


def test_what_a_person_states_counts_before_what_labels_tell(bodies: Any) -> None:
    stated = static_inventory({"nodes.yaml": "- {name: n, gpus: {type: X, count: 1, memoryMib: 8192}}"})
    node = only(survey([bodies.node(cordoned=True)], static=stated))
    assert [(d.type, d.source) for d in node.devices] == [("X", "Static")]
    assert (node.excluded, node.cpu_free_millis) == ("Cordoned", 15900)


@pytest.mark.parametrize(
    ("change", "reason"), [({"ready": "Unknown"}, "NotReady"), ({"cordoned": True}, "Cordoned"), ({}, None)]
)
def test_a_node_that_takes_nothing_new_says_why(bodies: Any, change: dict[str, Any], reason: str | None) -> None:
    node = only(survey([bodies.node(**change)]))
    assert node.excluded == refusal(node, Terms()) == reason
    assert leaves(node, Terms()) == (reason == "NotReady")


@pytest.mark.parametrize(
    ("tolerations", "enters", "stays"),
    [
        ([], False, False),
        ([{"key": "team", "value": "b"}], False, False),
        ([{"key": "team", "value": "a", "effect": "NoSchedule"}], False, False),
        ([{"key": "team", "value": "a"}], True, True),
        ([{"key": "team", "operator": "Exists"}], True, True),
        ([{"operator": "Exists", "effect": "NoExecute"}], True, True),
    ],
)
def test_taints_keep_off_and_evict_who_does_not_tolerate_them(
    bodies: Any, tolerations: list[Any], enters: bool, stays: bool
) -> None:
    taints = [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"},
        {"key": "soft", "effect": "PreferNoSchedule"},
        {"key": "team", "value": "a", "effect": "NoExecute"},
    ]
    node = only(survey([bodies.node(taints=taints)]))
    terms = Terms(tolerations=tuple(Toleration.model_validate(t) for t in tolerations))
    assert (refusal(node, terms) is None, not leaves(node, terms)) == (enters, stays)


def test_a_selector_chooses_nodes(bodies: Any) -> None:
    node = only(survey([bodies.node(labels={"zone": "a"})]))
    assert refusal(node, Terms(node_selector={"zone": "a"})) is None
    assert "zone" in str(refusal(node, Terms(node_selector={"zone": "b"})))
    assert leaves(node, Terms(node_selector={"zone": "b"}))


def test_cores_are_what_other_pods_leave(bodies: Any) -> None:
    pods = [
        bodies.pod("a", requests={"cpu": "5", "memory": "8Gi"}),
        bodies.pod("b", requests={"cpu": "4"}, holds=[("n", "cpu0")]),
    ]
    node = only(survey([bodies.node()], pods))
    devices = cpu_devices(node, 2)
    assert [d.name for d in devices] == [f"cpu{i}" for i in range(5)]  # 10.9 cores of 15.9
    assert all((d.type, cores_of(d), d.uuid, d.cores) == ("cpu-2", 2, None, ()) for d in devices)
    assert sum(d.memory_bytes for d in devices) <= 56 * 2**30
    assert [d.name for d in cpu_devices(node, 2, held={"cpu1", "gpu0"}, limit=2)] == ["cpu0", "cpu2"]
    assert len(cpu_devices(node, 1, free_bytes=0)) == 0


AMOUNTS = st.integers(0, 9)
PODS = st.lists(
    st.tuples(st.sampled_from("ab"), AMOUNTS, st.sampled_from([None, 0, 1, 2]), st.sampled_from(["Running", "Failed"])),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), AMOUNTS, AMOUNTS, PODS)
def test_never_more_than_there_is_never_less_than_none_and_order_plays_no_part(
    bodies: Any, data: st.DataObject, first: int, second: int, drawn: list[tuple[str, int, int | None, str]]
) -> None:
    nodes = [bodies.node("a", gpus=first), bodies.node("b", gpus=second)]
    pods = [
        bodies.pod(
            f"p{i}",
            node,
            {"nvidia.com/gpu": str(count), "cpu": f"{count}", "memory": f"{count}Gi"},
            None if held is None else [(node, f"gpu{held}")],
            phase,
        )
        for i, (node, count, held, phase) in enumerate(drawn)
    ]
    found = survey(nodes, pods)
    assert found == survey(nodes[::-1], data.draw(st.permutations(pods)))
    for node, allocatable in zip(found.nodes, (first, second), strict=True):
        others = sum(c for n, c, held, phase in drawn if n == node.name and held is None and phase == "Running")
        ours = {f"gpu{h}" for n, _, h, phase in drawn if n == node.name and h is not None and phase == "Running"}
        there = {device.name for device in node.devices}
        assert len(there) == len(node.devices) == max(0, allocatable - others)
        assert ours <= there or len(there) < len(ours)
        assert node.cpu_free_millis >= 0
        assert node.memory_free_bytes >= 0


def test_a_thousand_nodes_and_ten_thousand_pods_take_no_time_to_speak_of(bodies: Any) -> None:
    nodes = [bodies.node(f"n{i}", gpus=8) for i in range(1000)]
    pods = [bodies.pod(f"p{i}", f"n{i % 1000}", {"cpu": f"{i % 7}00m", "memory": "1Gi"}) for i in range(10_000)]
    start = time.process_time()
    found = survey(nodes, pods)
    assert time.process_time() - start < 10  # under one second on an idle machine; several share this one
    assert sum(len(node.devices) for node in found.nodes) == 8000
