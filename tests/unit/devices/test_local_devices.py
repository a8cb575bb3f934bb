"""Core sets of this very machine."""

from __future__ import annotations

import pytest

from ensemble_runtime.config import DeviceKind
from ensemble_runtime.devices.cgroup import available_memory
from ensemble_runtime.devices.local import discover, usable_cores
from ensemble_runtime.errors import DeviceUnavailableError


def core_sets(size):
    return [device for device in discover(size) if device.kind is DeviceKind.CPU]


def test_each_core_is_a_device_and_they_share_the_memory():
    devices = core_sets(1)
    assert [device.cores for device in devices] == [(core,) for core in usable_cores()]
    assert [device.name for device in devices] == [f"cpu{i}" for i in range(len(devices))]
    assert {device.type for device in devices} == {"cpu-1"}
    assert sum(device.memory_bytes for device in devices) < available_memory()


@pytest.mark.parametrize("size", [None, 10_000])
def test_one_device_of_all_cores(size):
    (device,) = core_sets(size)
    assert device.cores == tuple(usable_cores())
    assert device.type == f"cpu-{len(device.cores)}"


def test_cores_that_do_not_fill_a_device_are_left_over(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {9, 3, 4, 7, 8})
    monkeypatch.setattr("ensemble_runtime.devices.cgroup.core_quota", lambda: float("inf"))
    assert [device.cores for device in core_sets(2)] == [(3, 4), (7, 8)]


def test_a_quota_of_processor_time_bounds_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("ensemble_runtime.devices.cgroup.core_quota", lambda: 2.5)
    assert [device.cores for device in core_sets(1)] == [(0,), (1,)]


def test_less_than_a_core_of_quota_is_still_one_core(monkeypatch):
    monkeypatch.setattr("ensemble_runtime.devices.cgroup.core_quota", lambda: 0.1)
    assert len(core_sets(1)) == 1


def test_a_device_has_at_least_one_core():
    with pytest.raises(DeviceUnavailableError, match="at least 1"):
        discover(0)
