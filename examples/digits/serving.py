"""Starts `ensemblectl up` the way a person would, stops it, and makes sure that nothing of it is left."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leftovers import belongings

HOST = "127.0.0.1"
STOP_SECONDS = 60

ENSEMBLECTL = Path(sys.executable).with_name("ensemblectl")


@dataclass(frozen=True)
class Served:
    """An ensemble that is being served."""

    address: tuple[str, int]
    plan: dict[str, Any]
    """As `ensemblectl plan -o json` writes it."""

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"


@contextmanager
def serving(manifest: Path) -> Iterator[Served]:
    """Serve a manifest as long as the context lasts.

    Raises:
        CalledProcessError: It ended before it was ready, having said why.
        RuntimeError: Something outlived the context.
    """
    address = (HOST, _free_port())
    command = [str(ENSEMBLECTL), "up", str(manifest), "--port", str(address[1]), "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield Served(address, _plan(server))
        finally:
            held = belongings(server.pid, address)
            _stop(server)
    if left := held.left():
        raise RuntimeError(f"left behind after the stop: {', '.join(left)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _plan(server: subprocess.Popen[str]) -> dict[str, Any]:
    """What `ensemblectl up` says as soon as it is ready."""
    assert server.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1].rstrip() != "}":
        line = server.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(server.wait(STOP_SECONDS), server.args)
        lines.append(line)
    plan: dict[str, Any] = json.loads("".join(lines))["plan"]
    return plan


def _stop(server: subprocess.Popen[str]) -> None:
    """By SIGTERM: a process in the background may have been started deaf to SIGINT. Killed if that does not end it."""
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
