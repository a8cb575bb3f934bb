"""Programs that run beside the tests: each with its log, and none outlives the tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE_SECONDS = 120.0  # a start takes 4 s on an idle machine
TAIL_LINES = 30


class StartError(Exception):
    """A program that did not come up; the message ends with the tail of its log."""


class Program:
    """One process, which may be ended, started again, and held."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it; the log grows on."""
        assert self._process is None, f"{self.name} is running"
        # The kernel ends it with the thread that started it, whatever becomes of the tests.
        leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*leash, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait until it is gone; fine where it has ended already."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)  # one that is held hears nothing but SIGKILL
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def hold(self) -> None:
        """Freeze it: its connections stay and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `hold`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-TAIL_LINES:])

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until it is ready.

        Raises:
            StartError: It has ended, or is not ready in time.
        """
        try:
            wait_for(lambda: not self.running() or ready(), f"{self.name}: {what}")
        except TimeoutError as error:
            raise StartError(f"{error}\n{self.tail()}") from None
        if not self.running():
            raise StartError(f"{self.name} ended by itself:\n{self.tail()}")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until a condition holds, looking 20 times a second.

    Raises:
        TimeoutError: It does not hold in time.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
