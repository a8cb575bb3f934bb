"""GPUs that a device plugin offers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.inventory.labels import labelled, names, resource_of
from ensemble_operator.inventory.node_record import node_record

MIB = 2**20
RESERVE = 600 * MIB

MIXED = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
    "nvidia.com/gpu.memory": "40960",
    "nvidia.com/mig.strategy": "mixed",
    "nvidia.com/mig-1g.5gb.memory": "4864",
    "nvidia.com/mig-3g.20gb.product": "NVIDIA-A100-SXM4-40GB-MIG-3g.20gb",
    "nvidia.com/mig-3g.20gb.memory": "20096",
}


def test_free_is_what_is_allocatable_less_what_others_request(bodies: Any) -> None:
    offer = labelled(node_record(bodies.node(gpus=4)), {"nvidia.com/gpu": 1}, (), RESERVE)
    assert [d.name for d in offer.devices] == ["gpu0", "gpu1", "gpu2"]
    device = offer.devices[0]
    assert (device.type, device.memory_bytes) == ("NVIDIA-A100-SXM4-40GB", 40360 * MIB)
    assert (device.uuid, device.source, offer.notes) == (None, "Labels", ())


def test_what_we_hold_keeps_its_name(bodies: Any) -> None:
    offer = labelled(node_record(bodies.node(gpus=4)), {"nvidia.com/gpu": 2}, {"gpu3", "cpu0"}, RESERVE)
    assert [d.name for d in offer.devices] == ["gpu0", "gpu3"]


def test_gpus_that_went_bad_are_gone_even_if_held(bodies: Any) -> None:
    offer = labelled(node_record(bodies.node(gpus=1)), {}, {"gpu0", "gpu1"}, RESERVE)
    assert [d.name for d in offer.devices] == ["gpu0"]


def test_a_broken_gpu_is_the_one_that_is_gone_and_its_name_is_nobodys(bodies: Any) -> None:
    node = node_record(bodies.node(gpus=2))
    assert [d.name for d in labelled(node, {}, {"gpu1"}, RESERVE, {"gpu0"}).devices] == ["gpu1", "gpu2"]


def test_mig_single_is_like_whole_gpus_of_another_model(bodies: Any) -> None:
    labels = {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
        "nvidia.com/gpu.memory": "4864",
        "nvidia.com/mig.strategy": "single",
    }
    offer = labelled(node_record(bodies.node(gpus=7, labels=labels)), {}, (), RESERVE)
    assert len(offer.devices) == 7
    assert offer.devices[0].type == "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
    assert resource_of(offer.devices[0]) == "nvidia.com/gpu"


def test_mig_mixed_offers_each_profile_under_its_own_resource(bodies: Any) -> None:
    body = bodies.node(gpus=1, labels=MIXED, allocatable={"nvidia.com/mig-1g.5gb": "2", "nvidia.com/mig-3g.20gb": "1"})
    offer = labelled(node_record(body), {"nvidia.com/mig-1g.5gb": 1}, {"mig-1g-5gb-1"}, RESERVE)
    assert {(d.name, d.type, resource_of(d)) for d in offer.devices} == {
        ("gpu0", "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu"),
        ("mig-1g-5gb-1", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "nvidia.com/mig-1g.5gb"),
        ("mig-3g-20gb-0", "NVIDIA-A100-SXM4-40GB-MIG-3g.20gb", "nvidia.com/mig-3g.20gb"),
    }


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu.sharing-strategy": "time-slicing", "nvidia.com/gpu.replicas": "4"},
        {"nvidia.com/gpu.sharing-strategy": "mps", "nvidia.com/gpu.replicas": "2"},
        {"nvidia.com/gpu.product": "Tesla-T4-SHARED"},
        {"nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/gpu.replicas": "3"},
    ],
)
def test_gpus_that_are_shared_are_refused_with_a_note(bodies: Any, labels: dict[str, str]) -> None:
    known = {"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360"} | labels
    offer = labelled(node_record(bodies.node(gpus=4, labels=known)), {}, (), RESERVE)
    assert offer.devices == ()
    assert "shared" in offer.notes[0]


def test_renamed_shares_are_refused_too(bodies: Any) -> None:
    body = bodies.node(gpus=0, allocatable={"nvidia.com/gpu.shared": "8"})
    offer = labelled(node_record(body), {}, (), RESERVE)
    assert offer.devices == ()
    assert offer.notes[0].startswith("nvidia.com/gpu.shared: shared")


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ({}, "feature discovery"),
        ({"nvidia.com/gpu.product": "X"}, "feature discovery"),
        ({"nvidia.com/gpu.product": "X", "nvidia.com/gpu.memory": "512"}, "reserve"),
    ],
)
def test_gpus_that_no_label_describes_are_refused_with_a_note(bodies: Any, labels: dict[str, str], word: str) -> None:
    offer = labelled(node_record(bodies.node(gpus=1, labels=labels)), {}, (), RESERVE)
    assert offer.devices == ()
    assert word in offer.notes[0]


@given(st.integers(0, 16), st.sets(st.integers(0, 30), max_size=16))
def test_names_are_as_many_as_asked_for_and_those_held_come_first(count: int, held: set[int]) -> None:
    got = names("gpu", count, {f"gpu{i}" for i in held})
    assert len(got) == len(set(got)) == count
    kept = [f"gpu{i}" for i in sorted(held)]
    assert set(kept[:count]) <= set(got)
