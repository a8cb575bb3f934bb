"""Starts `ensemblectl up` the way a person would, stops it, and makes sure that nothing of it is left."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from leftovers import belongings

HOST = "127.0.0.1"
START_SECONDS = 600
STOP_SECONDS = 60

ENSEMBLECTL = Path(sys.executable).with_name("ensemblectl")


@contextmanager
def serving(manifest: Path) -> Iterator[tuple[str, int]]:
    """Serve a manifest as long as the context lasts; yields the address. Raises if anything outlives the context."""
    address = (HOST, _free_port())
    server = subprocess.Popen([ENSEMBLECTL, "up", manifest, "--port", str(address[1])], stdout=sys.stderr)
    try:
        _wait_until_ready(server, address)
        yield address
    finally:
        held = belongings(server.pid, address)
        _stop(server)
    if left := held.left():
        raise RuntimeError(f"left behind after the stop: {', '.join(left)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"`ensemblectl up` ended with exit code {server.returncode} before it was ready")
        if _ready(address):
            return
        time.sleep(0.1)
    raise RuntimeError(f"not ready after {START_SECONDS} s")


def _ready(address: tuple[str, int]) -> bool:
    connection = HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does, but killed if that does not end it."""
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
