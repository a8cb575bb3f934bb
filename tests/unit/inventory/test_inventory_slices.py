"""GPUs that drivers publish as ResourceSlices."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_operator.inventory.claim_record import allocated, others_devices
from ensemble_operator.inventory.offer import Offer
from ensemble_operator.inventory.slices import DRIVERS, DriverWords, published, slice_record

MIB = 2**20


def offers(slices: list[Any], claims: Any = (), held: dict[str, set[str]] | None = None, **more: Any) -> Any:
    taken = others_devices(use for claim in claims if (use := allocated(claim)))
    return published([slice_record(s) for s in slices], taken, held or {}, 600 * MIB, **more)


def of(found: dict[str, Offer], node: str = "n") -> list[str]:
    return [device.name for device in found[node].devices]


def test_a_device_has_the_drivers_uuid_and_the_labels_type(bodies: Any) -> None:
    (device,) = offers([bodies.slice_([bodies.gpu("gpu-0")])])["n"].devices
    assert (device.name, device.uuid, device.node) == ("gpu-0", "GPU-gpu-0", "n")
    assert (device.type, device.memory_bytes) == ("NVIDIA-A100-SXM4-40GB", (40960 - 600) * MIB)
    assert device.source == "ResourceSlices"


def test_qualified_names_are_the_same_as_plain_ones(bodies: Any) -> None:
    gpu = bodies.gpu("gpu-0")
    gpu["attributes"] = {f"gpu.nvidia.com/{name}": value for name, value in gpu["attributes"].items()}
    assert of(offers([bodies.slice_([gpu])])) == ["gpu-0"]


def test_only_the_highest_generation_counts(bodies: Any) -> None:
    old = bodies.slice_([bodies.gpu("gpu-0"), bodies.gpu("gpu-1")], generation=1)
    new = bodies.slice_([bodies.gpu("gpu-1")], generation=2)
    assert of(offers([old, new])) == of(offers([new, old])) == ["gpu-1"]


def test_an_incomplete_pool_offers_what_we_hold_and_no_more(bodies: Any) -> None:
    old = bodies.slice_([bodies.gpu("gpu-0"), bodies.gpu("gpu-1")], generation=1)
    part = bodies.slice_([bodies.gpu("gpu-2")], generation=2, of=2)
    assert of(offers([old, part])) == []
    assert of(offers([old, part], held={"n": {"gpu-1", "gpu-2"}})) == ["gpu-1", "gpu-2"]
    assert "1 of 2 slices" in offers([old, part])["n"].notes[0]
    rest = bodies.slice_([bodies.gpu("gpu-3")], generation=2, of=2, part=1)
    assert of(offers([old, part, rest])) == ["gpu-2", "gpu-3"]


def test_what_claims_of_others_have_is_gone_but_not_what_administrators_look_at(bodies: Any) -> None:
    slices = [bodies.slice_([bodies.gpu(f"gpu-{i}") for i in range(4)])]
    claims = [bodies.claim(["gpu-0"]), bodies.claim(["gpu-1"], admin=True), bodies.claim(["gpu-2"], ours=True)]
    assert of(offers(slices, claims)) == ["gpu-1", "gpu-2", "gpu-3"]
    assert of(offers(slices, [bodies.claim(["gpu-0"], pool="other")])) == [f"gpu-{i}" for i in range(4)]


def test_a_taint_keeps_new_cells_off_and_evicts_only_if_it_says_so(bodies: Any) -> None:
    taints = {effect: [{"key": "gpu.nvidia.com/xid", "effect": effect}] for effect in ("NoSchedule", "NoExecute")}
    slices = [
        bodies.slice_(
            [bodies.gpu("gpu-0", taints=taints["NoSchedule"]), bodies.gpu("gpu-1", taints=taints["NoExecute"])]
        )
    ]
    assert of(offers(slices)) == []
    assert of(offers(slices, held={"n": {"gpu-0", "gpu-1"}})) == ["gpu-0"]


def test_instances_that_exist_are_devices_of_their_own(bodies: Any) -> None:
    mig = {"type": {"string": "mig"}, "profile": {"string": "1g.5gb"}}
    (device,) = offers([bodies.slice_([bodies.gpu("gpu-0-mig-1g5gb-19-0", attributes=mig)])])["n"].devices
    assert device.type == "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"


def test_partitions_on_demand_are_not_offered_nor_a_gpu_of_which_a_part_is_taken(bodies: Any) -> None:
    mig = {"type": {"string": "mig"}, "profile": {"string": "1g.5gb"}}

    def counters(index: int) -> list[dict[str, str]]:
        return [{"counterSet": f"gpu-{index}-counters"}]

    slices = [
        bodies.slice_(
            [
                bodies.gpu("gpu-0", consumesCounters=counters(0)),
                bodies.gpu("gpu-0-mig", attributes=mig, consumesCounters=counters(0)),
                bodies.gpu("gpu-1", consumesCounters=counters(1)),
                bodies.gpu("gpu-1-mig", attributes=mig, consumesCounters=counters(1)),
            ]
        )
    ]
    assert of(offers(slices)) == ["gpu-0", "gpu-1"]
    found = offers(slices, [bodies.claim(["gpu-0-mig"])])
    assert of(found) == ["gpu-1"]
    assert found["n"].notes == ("gpu-0: parts of it are allocated",)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"allowMultipleAllocations": True}, "share"),
        ({"capacity": {}}, "memory"),
        ({"attributes": {"uuid": {"string": ""}}}, "uuid"),
    ],
)
def test_what_cannot_be_planned_with_is_refused_with_a_note(bodies: Any, change: dict[str, Any], word: str) -> None:
    gpu = bodies.gpu("gpu-0", **{k: v for k, v in change.items() if k == "attributes"}) | {
        k: v for k, v in change.items() if k != "attributes"
    }
    found = offers([bodies.slice_([gpu])])["n"]
    assert found.devices == ()
    assert word in found.notes[0]


def test_devices_for_passing_through_and_of_no_node_are_left_out(bodies: Any) -> None:
    vfio = bodies.gpu("gpu-vfio-0", attributes={"type": {"string": "vfio"}})
    assert offers([bodies.slice_([vfio])]) == {}
    assert offers([bodies.slice_([bodies.gpu("gpu-0")], node="", allNodes=True)]) == {}
    shared = bodies.slice_([bodies.gpu("a") | {"nodeName": "x"}, bodies.gpu("b")], node="", perDeviceNodeSelection=True)
    assert {node: of({node: offer}, node) for node, offer in offers([shared]).items()} == {"x": ["a"]}


def test_other_drivers_count_when_their_words_are_known(bodies: Any) -> None:
    gpu = bodies.gpu("gpu-0", attributes={"model": {"string": "LATEST-GPU-MODEL"}})
    slices = [bodies.slice_([gpu], driver="gpu.example.com")]
    assert offers(slices) == {}
    words = {**DRIVERS, "gpu.example.com": DriverWords(product="model")}
    assert offers(slices, drivers=words)["n"].devices[0].type == "LATEST-GPU-MODEL"
