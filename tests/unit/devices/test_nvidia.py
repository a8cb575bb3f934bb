"""GPUs and MIG instances, through the real pynvml over the stub library."""

from __future__ import annotations

import pytest

from ensemble_runtime.devices.local import GPU_RESERVE_BYTES

MIB = 2**20
FIND = "from ensemble_runtime.devices import nvidia; nvidia.find('GPU-none')"


def gpus_of(devices):
    return [device for device in devices if device["kind"] == "GPU"]


def test_gpus_come_by_pci_bus_id_with_their_free_memory_less_the_reserve(discovered):
    first, second = gpus_of(discovered())
    # gpu0 at 65:00.0, first on the bus, has less free memory than the reserve and is left out; names stay.
    assert first == {
        "name": "gpu1",
        "kind": "GPU",
        "type": "NVIDIA-A100-SXM4-40GB",
        "memory_bytes": 40000 * MIB - GPU_RESERVE_BYTES,
        "cores": [],
        "uuid": "GPU-c1c1c1c1-0000-0000-0000-000000000000",
        "pci_bus_id": None,
        "seconds": {},
    }
    assert (second["name"], second["type"]) == ("gpu2", "NVIDIA-H100-80GB-HBM3")


def test_a_gpu_in_mig_mode_counts_as_its_instances(discovered):
    instances = [device for device in gpus_of(discovered(mig="1")) if device["uuid"].startswith("MIG-")]
    assert [(device["uuid"][:12], device["type"]) for device in instances] == [
        ("MIG-11111111", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
        ("MIG-22222222", "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"),
    ]
    assert instances[1]["memory_bytes"] == 40000 * MIB - GPU_RESERVE_BYTES


def test_the_parents_bus_id_is_told_for_an_instance(with_stub):
    code = (
        "from ensemble_runtime.devices import nvidia;"
        "print(nvidia.find('MIG-22222222-0000-0000-0000-000000000004').pci_bus_id)"
    )
    assert with_stub(code, mig="1").stdout.strip() == "00000000:CA:00.0"


def test_gpus_in_order_of_their_bus_id(with_stub):
    code = "from ensemble_runtime.devices import nvidia; print(*[g.pci_bus_id for g in nvidia.gpus()])"
    assert with_stub(code).stdout.split() == ["00000000:65:00.0", "00000000:C1:00.0", "00000000:CA:00.0"]


@pytest.mark.parametrize("code", ["9", "12"], ids=["driver not loaded", "library not found"])
def test_no_driver_means_no_gpu(discovered, code):
    devices = discovered(fail=f"nvmlInitWithFlags={code}")
    assert not gpus_of(devices)
    assert devices  # the cores are still there


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_broken_driver_is_an_error_and_not_a_machine_without_gpus(with_stub, function):
    finished = with_stub("from ensemble_runtime.__main__ import main; exit(main(['devices']))", fail=f"{function}=18")
    assert finished.returncode == 69
    (line,) = finished.stderr.strip().splitlines()
    assert line.startswith("ensemble-runtime: NVML")
    assert "nvidia-smi" in line


def test_a_lost_gpu_leaves_the_others(discovered):
    devices = gpus_of(discovered(fail="nvmlDeviceGetHandleByIndex_v2=15"))
    assert [device["type"] for device in devices] == ["NVIDIA-H100-80GB-HBM3"]


def test_an_unknown_uuid_is_named_with_those_that_are_there(with_stub):
    finished = with_stub(FIND)
    assert "GPU GPU-none is not on this machine" in finished.stderr
    assert "GPU-c1c1c1c1-0000-0000-0000-000000000000" in finished.stderr


def test_no_gpu_at_all_is_said(with_stub):
    assert "found no GPU" in with_stub(FIND, gpus="0").stderr
