"""Servers under test: the runtime, started as a cluster starts it, and a bare HTTP application."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ensemble_runtime.config import Listen, RuntimeConfig

PATIENCE = 120.0
"""Seconds that a server may take to start or to stop."""


@contextlib.contextmanager
def runtime(config: RuntimeConfig) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a configuration on a free port; yields the base URL when ready, and the parent process."""
    config = config.model_copy(update={"listen": Listen(port=free_port())})
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "config.json"
        document.write_text(config.model_dump_json(by_alias=True))
        arguments = ["-m", "ensemble_runtime", "--log-level", "WARNING", "serve", str(document), "--cache", folder]
        with _server(arguments, config.listen.port, "/v2/health/ready") as server:
            yield server


@contextlib.contextmanager
def bare_application() -> Iterator[str]:
    """aiohttp on uvloop that reads a body and answers ten floats; yields the base URL."""
    port = free_port()
    with _server([str(Path(__file__).parent / "bare_application.py"), str(port)], port, "/") as (base, _):
        yield base


@contextlib.contextmanager
def _server(arguments: list[str], port: int, ready: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        try:
            _await_ready(process, port, ready)
            yield f"http://127.0.0.1:{port}", process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode} before it was ready")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    raise RuntimeError(f"the server was not ready within {PATIENCE:.0f} s")


def free_port() -> int:
    """A TCP port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
