"""What the control groups of this process leave it: memory and processor time. Versions 1 and 2.

A container sees the whole machine's memory and cores in the usual places; its limits stand only here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("proc/self/cgroup")
_MOUNT = Path("sys/fs/cgroup")


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate: the least of what the machine and each of its groups have left.

    Args:
        root: Where ``proc`` and ``sys`` are found.
    """
    left = [_machine_available(root)]
    for folder in _folders(root, "memory"):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                # The kernel drops inactive file pages before it refuses memory.
                left.append(max(0, most - used + _stat(folder / "memory.stat", cache)))
    return min(left)


def core_quota(root: Path = Path("/")) -> float:
    """Cores' worth of processor time that this process may use; infinite without a limit."""
    quota = math.inf
    for folder in _folders(root, "cpu"):
        if text := _text(folder / "cpu.max"):  # version 2: "200000 100000" or "max 100000"
            share, _, period = text.partition(" ")
        else:
            share, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if share.isdigit() and period.isdigit() and int(period):
            quota = min(quota, int(share) / int(period))
    return quota


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and all above it, of one controller.

    A container may see its own group as the root of the mount while the path still tells the host's; folders that do
    not exist are left out, and the mount's root comes last in any case.
    """
    for line in _text(root / _PROC).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / _MOUNT / controller if controllers else root / _MOUNT
        folder = mount / path.strip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(mount) and place.is_dir())


def _machine_available(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not tell MemAvailable; Linux 3.14 or later is needed")


def _stat(file: Path, key: str) -> int:
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
