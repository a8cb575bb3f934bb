"""A runtime as a child of the command line: started from a configuration, waited for, stopped, never left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from ensemble_operator.cli.errors import RuntimeEndedError, ServerUnreachableError
from ensemble_operator.cli.output import progress
from ensemble_operator.cli.server import get_json, is_ready
from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.errors import PortTakenError

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class RuntimeProcess:
    """`python -m ensemble_runtime serve`, as long as the context lasts.

    It is asked to stop when this process dies, however it dies. It has a process group of its own, so that Ctrl-C in
    the terminal reaches the command line alone, which then stops it in order.
    """

    def __init__(self, config: RuntimeConfig, *, log_level: str = "WARNING") -> None:
        """Start serving a configuration, whose port must not be 0; it is not ready yet."""
        self._config = config
        self.url = f"http://{config.listen.host}:{config.listen.port}"
        command = [sys.executable, "-m", "ensemble_runtime", "--log-level", log_level, "serve", "/dev/stdin"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            process_group=0,
            preexec_fn=_die_with(os.getpid()),
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin:  # it ended without reading; its exit code tells why
            self._process.stdin.write(config.model_dump_json(by_alias=True).encode())

    def __enter__(self) -> Self:
        """Keep it running."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it in order, or by force when the drain takes too long."""
        self.stop()

    def wait_until_ready(self, *, quiet: bool = False) -> None:
        """Wait until every member has a worker, showing how many cells are up unless quiet.

        Raises:
            RuntimeEndedError: It ended instead.
        """
        total = len(self._config.cells)
        with progress(quiet=quiet) as bar:
            task = bar.add_task("loading", total=total, detail=f"0 of {total} cells")
            while not is_ready(self.url):
                self._check_alive()
                ready = _cells_ready(self.url)
                bar.update(task, completed=ready, detail=f"{ready} of {total} cells")
                time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Wait until it ends by itself.

        Raises:
            RuntimeEndedError: It failed.
        """
        if code := self._process.wait():
            raise RuntimeEndedError(code)

    def stop(self) -> None:
        """Ask it to stop, and wait for it; after the drain time and some grace, or on Ctrl-C, it is killed."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._config.serving.drain_ms / 1000 + _GRACE_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()
                self._process.wait()

    def _check_alive(self) -> None:
        if (code := self._process.poll()) is not None:
            raise RuntimeEndedError(code)


def require_free_port(host: str, port: int) -> None:
    """Refuse a port on which another server answers: it could be taken for ours.

    Raises:
        PortTakenError: The address is in use, or is not one of this machine's.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise PortTakenError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within the context SIGTERM ends the main thread's work as an exception does, so that it tidies up."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopped(BaseException):
    """SIGTERM came."""


def _stop(*_: Any) -> None:
    raise Stopped


def _cells_ready(url: str) -> int:
    try:
        model = get_json(url, "/v2/models/stats")["model_stats"][0]
        return sum(cell["state"] == "Ready" for cell in model["cells"])
    except (ServerUnreachableError, LookupError, TypeError):
        return 0


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec: have the kernel end it when its parent is gone."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was told
            os.kill(os.getpid(), signal.SIGTERM)

    return bind
