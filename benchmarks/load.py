"""Load on an HTTP server: binary bodies of the Open Inference Protocol, sent by wrk."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SCRIPT = Path(__file__).parent / "load.lua"


@dataclass(frozen=True)
class Target:
    """A URL and the one request that it gets."""

    url: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_second: float
    """Answers a second: all of them over the whole run, or with a warm-up those of the steady state."""
    p50_ms: float
    p99_ms: float


def infer(base: str, model: str, rows: NDArray[np.float32]) -> Target:
    """An inference request with one binary input `x`; the answer is asked for in binary too."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": rows.shape,
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Target(f"{base}/v2/models/{model}/infer", headers, head + rows.tobytes())


def wrk(target: Target, connections: int, seconds: float, warm: float = 0) -> Load:
    """Load a server from one thread.

    Args:
        target: Where, and what to send.
        connections: Each has one request on its way at any time.
        seconds: Of the run that counts.
        warm: Seconds before them. Where answers are slow, those that are still on their way at a run's end would
            weigh; with a warm-up only answers within the counted seconds are counted, which is the steady state.

    Raises:
        RuntimeError: an answer was missing or no success (a benchmark of errors is none), or there is no wrk.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(target.body)
        headers = [part for name, value in target.headers.items() for part in ("-H", f"{name}: {value}")]
        total = max(1, round(warm + seconds + (0.5 if warm else 0)))
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{total}s", "--timeout", "60s", "-s", str(SCRIPT), *headers,
             target.url, "--", str(body), str(warm), str(seconds)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    if found["errors"] or not found["answers"]:
        raise RuntimeError(f"{target.url}: {found['answers']} answers, {found['errors']} failures")
    return Load(found["per_second"], found["p50_ms"], found["p99_ms"])


def throughput(target: Target, connections: int, seconds: float, warm: float = 0) -> Callable[[], float]:
    """A measurement of answers a second."""
    return lambda: wrk(target, connections, seconds, warm).per_second


def latency(target: Target, seconds: float) -> Callable[[], float]:
    """A measurement of the median milliseconds of a request when there is but one at a time."""
    return lambda: wrk(target, 1, seconds).p50_ms
