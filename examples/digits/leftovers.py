"""What a server has of the machine, and what of it is still there later."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Process:
    """A process as /proc tells of it; the start time tells it from a later one that has the same number."""

    pid: int
    parent: int
    state: str
    start: int


@dataclass(frozen=True)
class Belongings:
    """Processes by number with their start times, files of shared memory by inode, and the address served on."""

    processes: frozenset[tuple[int, int]]
    shared_memory: frozenset[int]
    address: tuple[str, int]

    def left(self) -> list[str]:
        """A line for each thing that is still there."""
        running = {(p.pid, p.start) for p in _processes() if p.state != "Z"}
        mapped = {inode for pid, _ in running for inode in _mapped(pid)}
        named = {path.stat().st_ino for path in SHARED_MEMORY.iterdir()}
        with socket.socket() as probe:
            answers = probe.connect_ex(self.address) == 0
        return [
            *(f"process {pid}" for pid, _ in sorted(self.processes & running)),
            *(f"shared memory with inode {inode}" for inode in sorted(self.shared_memory & (mapped | named))),
            *([f"a socket on port {self.address[1]}"] if answers else []),
        ]


def belongings(root: int, address: tuple[str, int]) -> Belongings:
    """What a process and all that it started, directly or not, hold."""
    processes = _processes()
    family = {root}
    while grown := {p.pid for p in processes if p.parent in family} - family:
        family |= grown
    return Belongings(
        processes=frozenset((p.pid, p.start) for p in processes if p.pid in family),
        shared_memory=frozenset(inode for pid in family for inode in _mapped(pid)),
        address=address,
    )


def _processes() -> list[Process]:
    return [p for path in Path("/proc").glob("[0-9]*") if (p := _process(path)) is not None]


def _process(path: Path) -> Process | None:
    try:
        # What follows "pid (name)": state, parent, ..., and in twentieth place the start time.
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(int(path.name), int(fields[1]), fields[0], int(fields[19]))


def _mapped(pid: int) -> set[int]:
    """Inodes of the files in shared memory that a process maps, with or without a name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    return {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
