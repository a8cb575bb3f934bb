"""Binding changes the process for good, so each case has a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ensemble_runtime.config import Device
from ensemble_runtime.devices import binding

UUID = "GPU-c1c1c1c1-0000-0000-0000-000000000000"
CORE = min(os.sched_getaffinity(0))


def code(device: dict, before: str = "") -> str:
    return f"""
import json, os, sys
{before}
from ensemble_runtime.config import Device
from ensemble_runtime.devices.binding import bind, threads
from ensemble_runtime.errors import EnsembleError
device = Device.model_validate_json({json.dumps(json.dumps(device))})
try:
    observed = bind(device)
except EnsembleError as error:
    sys.exit(f"{{error.exit_code}} {{error}}")
affinity = sorted(os.sched_getaffinity(0))
print(json.dumps([observed, threads(device), affinity, dict(os.environ), "torch" in sys.modules]))
"""


def gpu(uuid: str | None = UUID) -> dict:
    return {"name": "gpu0", "kind": "GPU", "type": "x", "memoryBytes": 1, "uuid": uuid}


def cpu(*cores: int) -> dict:
    return {"name": "cpu0", "kind": "CPU", "type": f"cpu-{len(cores)}", "memoryBytes": 1, "cores": cores}


def bound(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)


def test_a_gpu_process_sees_its_gpu_alone_before_torch_is_there(with_stub):
    observed, count, _, environment, torch_imported = json.loads(with_stub(code(gpu())).stdout)
    assert observed == f"{UUID} 00000000:C1:00.0"
    assert count == 1
    assert environment["CUDA_VISIBLE_DEVICES"] == UUID
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert not torch_imported


def test_a_mig_instance_is_bound_by_its_own_uuid(with_stub):
    uuid = "MIG-11111111-0000-0000-0000-000000000003"
    observed, _, _, environment, _ = json.loads(with_stub(code(gpu(uuid)), mig="1").stdout)
    assert environment["CUDA_VISIBLE_DEVICES"] == uuid
    assert observed == f"{uuid} 00000000:CA:00.0"


def test_a_gpu_that_is_not_there_is_named(with_stub):
    finished = with_stub(code(gpu("GPU-planned")))
    assert finished.stderr.startswith("69 GPU GPU-planned is not on this machine; found GPU-")


def test_too_late_once_torch_is_imported(with_stub):
    finished = with_stub(code(gpu(), before="import types; sys.modules['torch'] = types.ModuleType('torch')"))
    assert finished.stderr.startswith("69 gpu0: torch is imported already")


def test_a_gpu_needs_its_uuid(with_stub):
    assert with_stub(code(gpu(None))).stderr.startswith("69 gpu0: a GPU needs its `uuid`")


def test_a_core_set_pins_the_process_and_its_threads():
    observed, count, affinity, environment, _ = json.loads(bound(code(cpu(CORE))).stdout)
    assert observed == f"cores {CORE}"
    assert affinity == [CORE]
    assert count == 1
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("cores", [(100_000,), (CORE, 1000)], ids=["none is there", "one of two is there"])
def test_cores_that_are_not_there_are_named(cores):
    finished = bound(code(cpu(*cores)))
    assert finished.stderr.startswith("69 cpu0:")
    assert str(max(cores)) in finished.stderr


def test_a_core_set_without_cores_says_how_many_threads_and_pins_nothing():
    before = sorted(os.sched_getaffinity(0))
    device = cpu() | {"type": "cpu-3"}
    observed, count, affinity, environment, _ = json.loads(bound(code(device)).stdout)
    assert observed == "any 3 cores"
    assert count == 3
    assert environment["OMP_NUM_THREADS"] == "3"
    assert affinity == before


def test_a_simulated_device_binds_to_nothing():
    before = sorted(os.sched_getaffinity(0))
    device = {"name": "s0", "kind": "Simulated", "type": "sim", "memoryBytes": 1}
    observed, _, affinity, _, _ = json.loads(bound(code(device)).stdout)
    assert observed == "simulated sim"
    assert affinity == before


LEAVING = """
import json, os, sys, threading
from ensemble_runtime.config import Device
from ensemble_runtime.devices.binding import leave_cores, take_cores
first, second = map(Device.model_validate, json.loads(sys.argv[1]))
asked, found = threading.Event(), []
seen = [sorted(os.sched_getaffinity(0))]
left = leave_cores(first, second)
seen.append(sorted(os.sched_getaffinity(0)))
thread = threading.Thread(target=lambda: (asked.wait(), found.append(sorted(os.sched_getaffinity(0)))))
thread.start()
seen.append(sorted(os.sched_getaffinity(thread.native_id)))
take_cores(left)
asked.set()
thread.join()
print(json.dumps([*seen, *found]))
"""


def leaving(first: dict, second: dict) -> list[list[int]]:
    """Cores at first, once those of a second device are left, those of a new thread then, and once they are taken."""
    command = [sys.executable, "-c", LEAVING, json.dumps([first, second])]
    found: list[list[int]] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core besides")
def test_a_gpu_process_leaves_the_second_devices_cores_and_takes_them_back():
    before, left, threads, taken = leaving(gpu(), cpu(CORE))
    assert left == threads == [core for core in before if core != CORE]
    assert taken == before


@pytest.mark.parametrize("first", [gpu(), cpu(CORE)], ids=["nowhere else to run", "bound to cores"])
def test_other_processes_stay_where_they_are(first):
    second = cpu(*os.sched_getaffinity(0)) if first == gpu() else cpu(CORE)
    before, *others = leaving(first, second)
    assert others == [before] * 3


@pytest.mark.parametrize(
    ("near", "may", "left"),
    [
        ({2: "2,6", 3: "3,7"}, range(8), {2, 3, 6, 7}),
        ({2: "2-3", 3: "2-3"}, range(8), {2, 3}),
        ({2: "2,6", 3: "3,7"}, (2, 3, 6, 7), {2, 3}),  # better a core's other thread than none
        ({}, range(8), {2, 3}),  # the kernel does not tell
        ({2: "2,6", 3: "3,7"}, (2, 3), set()),
    ],
)
def test_a_gpu_process_leaves_the_other_hardware_threads_of_these_cores_as_well(near, may, left, tmp_path, monkeypatch):
    for core, siblings in near.items():
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    stays: list[set[int]] = []
    monkeypatch.setattr(binding, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(may))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: stays.append(cores))
    found = binding.leave_cores(*map(Device.model_validate, (gpu(), cpu(2, 3))))
    assert found == left
    assert stays == ([set(may) - left] if left else [])
