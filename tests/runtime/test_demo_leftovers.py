"""The demo's claim that nothing is left running can fail."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

Server = tuple["subprocess.Popen[str]", int, int]

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

# Maps an unnamed file in shared memory, starts a child that inherits it, listens, and tells the port and the child.
SERVER = """
import mmap, os, socket, time
fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
os.ftruncate(fd, 4096)
memory = mmap.mmap(fd, 4096)
listener = socket.create_server(("127.0.0.1", 0))
child = os.fork()
if child == 0:
    listener.close()
    time.sleep(600)
print(listener.getsockname()[1], child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def leftovers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DIGITS)
    return importlib.import_module("leftovers")


@pytest.fixture
def server() -> Iterator[Server]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, child = map(int, process.stdout.readline().split())
        yield process, port, child
        process.kill()
        kill(child)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def ends(pid: int) -> bool:
    """Whether a process ends within a generous time; what init has not reaped yet has ended."""
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_everything_of_a_running_server_is_seen(leftovers: ModuleType, server: Server) -> None:
    process, port, child = server
    pid = process.pid
    left = leftovers.belongings(pid, ("127.0.0.1", port)).left()
    assert f"process {pid}" in left and f"process {child}" in left
    assert f"a socket on port {port}" in left
    assert sum(line.startswith("shared memory") for line in left) == 1


def test_a_child_that_outlives_its_parent_is_left_with_its_memory(leftovers: ModuleType, server: Server) -> None:
    process, port, child = server
    held = leftovers.belongings(process.pid, ("127.0.0.1", port))
    process.kill()
    process.wait(60)
    left = held.left()
    assert left[0] == f"process {child}"
    assert left[1].startswith("shared memory")
    assert len(left) == 2
    kill(child)
    assert ends(child)
    assert held.left() == []
