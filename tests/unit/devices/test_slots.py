"""Slots become devices: in the order of PCI bus ids and cores, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ensemble_runtime.config import Device
from ensemble_runtime.devices.slots import bound
from ensemble_runtime.errors import DeviceUnavailableError

FIRST = "GPU-c1c1c1c1-0000-0000-0000-000000000000"
CODE = """
import json, sys
from ensemble_runtime.config import Device
from ensemble_runtime.devices.slots import bound
from ensemble_runtime.errors import EnsembleError
devices = DEVICES
try:
    print(json.dumps([d.model_dump(mode="json") for d in bound(devices)]))
except EnsembleError as error:
    sys.exit(f"{error.exit_code} {error}")
"""

Bound = Callable[..., Any]


def gpu(name: str, product: str = "NVIDIA-A100-SXM4-40GB", mib: int = 300, uuid: str | None = None) -> dict[str, Any]:
    return {"name": name, "kind": "GPU", "type": product, "memoryBytes": mib * 2**20, "uuid": uuid}


def cpu(name: str, cores: int, memory: int = 1) -> Device:
    return Device(name=name, kind="CPU", type=f"cpu-{cores}", memory_bytes=memory)


@pytest.fixture
def with_gpus(with_stub: Callable[..., Any]) -> Bound:
    def run(*devices: dict[str, Any], **settings: str) -> Any:
        code = CODE.replace(
            "DEVICES", f"[Device.model_validate(d) for d in json.loads({json.dumps(json.dumps(devices))})]"
        )
        finished = with_stub(code, **settings)
        return json.loads(finished.stdout) if finished.returncode == 0 else finished.stderr.strip()

    return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(cores: set[int], quota: float = float("inf"), memory: int = 2**40) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
        monkeypatch.setattr("ensemble_runtime.devices.cgroup.core_quota", lambda: quota)
        monkeypatch.setattr("ensemble_runtime.devices.cgroup.available_memory", lambda: memory)

    return make


def test_gpus_come_in_the_order_of_their_bus_ids(with_gpus: Bound) -> None:
    found = with_gpus(gpu("gpu3"), gpu("gpu7"))
    assert [(d["name"], d["pci_bus_id"]) for d in found] == [("gpu3", "00000000:65:00.0"), ("gpu7", "00000000:C1:00.0")]
    assert found[1]["uuid"] == FIRST


def test_a_slot_takes_a_gpu_of_its_type(with_gpus: Bound) -> None:
    found = with_gpus(gpu("a", "NVIDIA-H100-80GB-HBM3"), gpu("b"))
    assert [d["pci_bus_id"] for d in found] == ["00000000:CA:00.0", "00000000:65:00.0"]


def test_a_slot_leaves_a_gpu_to_who_names_it(with_gpus: Bound) -> None:
    found = with_gpus(gpu("any", mib=1), gpu("named", uuid="GPU-65656565-0000-0000-0000-000000000001"))
    assert [d["uuid"] for d in found] == [FIRST, "GPU-65656565-0000-0000-0000-000000000001"]


def test_too_few_gpus(with_gpus: Bound) -> None:
    assert with_gpus(gpu("gpu0"), gpu("gpu1"), gpus="1") == (
        f"69 gpu1: planned 2 GPUs, got {FIRST} (NVIDIA-A100-SXM4-40GB)"
    )
    assert with_gpus(gpu("gpu0"), gpus="0") == "69 gpu0: planned 1 GPUs, got no GPU"


def test_a_planned_gpu_that_is_not_there(with_gpus: Bound) -> None:
    message = with_gpus(gpu("gpu0", uuid="GPU-planned"), gpus="1")
    assert message == f"69 gpu0: planned GPU-planned, got {FIRST} (NVIDIA-A100-SXM4-40GB)"


def test_a_gpu_with_less_memory_than_planned(with_gpus: Bound) -> None:
    message = with_gpus(gpu("gpu0", mib=500))
    assert message.startswith("69 gpu0: planned with 500 MiB of memory, got GPU-65656565")
    assert message.endswith("with 400 MiB free")


def test_another_type_serves_with_a_warning(with_gpus: Bound) -> None:
    assert with_gpus(gpu("gpu0", "Tesla-T4"))[0]["pci_bus_id"] == "00000000:65:00.0"


def test_cores_of_an_exclusive_set_are_dealt_out(machine: Callable[..., None]) -> None:
    machine({4, 5, 8, 9, 10}, quota=5)
    assert [d.cores for d in bound([cpu("a", 2), cpu("b", 1), cpu("c", 2)])] == [(4, 5), (8,), (9, 10)]


def test_cores_that_others_use_too_are_not_pinned(machine: Callable[..., None]) -> None:
    machine(set(range(64)), quota=3)
    slots = (cpu("a", 2), cpu("b", 1))
    assert bound(slots) == slots


@pytest.mark.parametrize(("cores", "quota"), [({1, 2}, float("inf")), (set(range(64)), 2.5)])
def test_fewer_cores_than_planned(machine: Callable[..., None], cores: set[int], quota: float) -> None:
    machine(cores, quota)
    with pytest.raises(DeviceUnavailableError, match=r"^a, b: planned 3 cores, got 2"):
        bound([cpu("a", 2), cpu("b", 1)])


def test_less_memory_than_planned(machine: Callable[..., None]) -> None:
    machine({0, 1}, memory=2**30)
    with pytest.raises(DeviceUnavailableError, match=r"^a, b: planned with 1200 MiB of memory, got 1024 MiB"):
        bound([cpu("a", 1, 600 * 2**20), cpu("b", 1, 600 * 2**20)])


def test_devices_with_an_identity_stay_as_they_are() -> None:
    devices = (
        Device(name="c", kind="CPU", type="cpu-1", memory_bytes=2**60, cores=(99,)),
        Device(name="s", kind="Simulated", type="x", memory_bytes=1),
    )
    assert bound(devices) == devices
