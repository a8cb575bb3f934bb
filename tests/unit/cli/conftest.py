"""A manifest that needs no hardware, the command line as a process, and a small server of the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

MANIFEST = """\
apiVersion: ensembles.dev/v1alpha1
kind: InferenceEnsemble
metadata: {{name: pair}}
spec:
  members:
  - {{name: big, model: {{uri: "https://nowhere/big", format: ONNX, sha256: {a}}}}}
  - {{name: small, model: {{uri: "https://nowhere/small", format: ONNX, sha256: {b}}}}}
  inputs: [{{name: x, datatype: FP32, shape: [4]}}]
  outputs: [{{name: y, datatype: FP32, shape: [3]}}]
  devices: {{simulated: [{{type: A100, count: 4, memoryMib: 1000}}]}}
---
apiVersion: ensembles.dev/v1alpha1
kind: ModelProfile
metadata: {{name: big}}
spec:
  model: {{sha256: {a}}}
  deviceType: A100
  points: [{{batchSize: 1, seconds: 0.01, memoryMib: 500}}, {{batchSize: 8, seconds: 0.04, memoryMib: 600}}]
---
apiVersion: ensembles.dev/v1alpha1
kind: ModelProfile
metadata: {{name: small}}
spec:
  model: {{sha256: {b}}}
  deviceType: A100
  points: [{{batchSize: 1, seconds: 0.004, memoryMib: 200}}, {{batchSize: 8, seconds: 0.01, memoryMib: 300}}]
""".format(a="a" * 64, b="b" * 64)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def ensemblectl(tmp_path: Path) -> Run:
    """Runs `ensemblectl` with a cache of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ensemble_operator.cli.main", *map(str, arguments)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)

    return run


@dataclass
class FakeServer:
    """Serves 'sum': x (rows, 4) FP32 to y (rows, 1), its sum. Refuses with 503 as often as told, first."""

    url: str = ""
    refusals: int = 0
    fail_with: tuple[int, bytes] | None = None
    rows_seen: list[int] = field(default_factory=list)
    parameters_seen: list[dict[str, Any]] = field(default_factory=list)
    json_answers: bool = False


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    state = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            documents: dict[str, Any] = {
                "/v2/health/ready": {"ready": True},
                "/v2/models": {"models": ["sum"]},
                "/v2/models/sum": {
                    "name": "sum",
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
                },
                "/v2/models/sum/config": {"max_batch_size": 64, "parameters": {}},
            }
            found = documents.get(self.path)
            self.answer(200 if found else 404, json.dumps(found or {"error": "no such model"}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if state.refusals > 0:
                state.refusals -= 1
                self.answer(503, b'{"error": "full"}', {"Retry-After": "0.01"})
                return
            if state.fail_with is not None:
                self.answer(*state.fail_with)
                return
            at = int(self.headers["Inference-Header-Content-Length"])
            request = json.loads(body[:at])
            x = np.frombuffer(body[at:], "<f4").reshape(request["inputs"][0]["shape"])
            state.rows_seen.append(len(x))
            state.parameters_seen.append(request["parameters"])
            y = x.sum(axis=1, keepdims=True)
            described: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(y.shape)}
            if state.json_answers:
                self.answer(200, json.dumps({"outputs": [described | {"data": y.ravel().tolist()}]}).encode())
                return
            described["parameters"] = {"binary_data_size": y.nbytes}
            header = json.dumps({"outputs": [described]}).encode()
            self.answer(200, header + y.tobytes(), {"Inference-Header-Content-Length": str(len(header))})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
