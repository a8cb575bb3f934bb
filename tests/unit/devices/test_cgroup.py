"""Limits of control groups, from made-up /proc and /sys trees of both versions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ensemble_runtime.devices.cgroup import available_memory, core_quota

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def tree(tmp_path):
    """Writes files below a root that has 64 GiB available."""

    def write(**files: object) -> Path:
        for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 * GIB // 1024} kB\n", **files}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return tmp_path

    return write


def v2(path: str, **files: object) -> dict[str, object]:
    return {f"sys/fs/cgroup{path}/{name.replace('__', '.')}": text for name, text in files.items()}


def test_without_groups_the_machine_decides(tree):
    root = tree()
    assert available_memory(root) == 64 * GIB
    assert core_quota(root) == math.inf


def test_version_2_inside_a_container(tree):
    limits = v2("", memory__max=4 * GIB, memory__current=GIB, cpu__max="150000 100000")
    root = tree(**{"proc/self/cgroup": "0::/"}, **limits)
    assert available_memory(root) == 3 * GIB
    assert core_quota(root) == 1.5


def test_version_2_the_tightest_of_all_groups_counts(tree):
    root = tree(
        **{"proc/self/cgroup": "0::/a/b"},
        **v2("/a", memory__max=2 * GIB, memory__current=GIB, cpu__max="100000 100000"),
        **v2("/a/b", memory__max="max", memory__current=GIB, cpu__max="max 100000"),
    )
    assert available_memory(root) == GIB
    assert core_quota(root) == 1.0


def test_file_pages_that_the_kernel_can_drop_are_available(tree):
    usage = {"memory__max": 4 * GIB, "memory__current": 4 * GIB, "memory__stat": f"anon 5\ninactive_file {GIB}"}
    root = tree(**{"proc/self/cgroup": "0::/"}, **v2("", **usage))
    assert available_memory(root) == GIB


def test_a_group_above_its_limit_leaves_nothing(tree):
    root = tree(**{"proc/self/cgroup": "0::/"}, **v2("", memory__max=GIB, memory__current=2 * GIB))
    assert available_memory(root) == 0


def test_version_1(tree):
    root = tree(
        **{
            "proc/self/cgroup": "4:memory:/pod\n1:cpu,cpuacct:/pod\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": 8 * GIB,
            "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": 3 * GIB,
            "sys/fs/cgroup/memory/pod/memory.stat": f"total_inactive_file {GIB}",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": 250000,
            "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": 100000,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        }
    )
    assert available_memory(root) == 6 * GIB
    assert core_quota(root) == 2.5


def test_a_path_of_the_host_that_the_container_cannot_see_falls_back_to_the_mount(tree):
    root = tree(
        **{
            "proc/self/cgroup": "4:memory:/kubepods/burstable/pod1",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
        }
    )
    assert available_memory(root) == GIB
