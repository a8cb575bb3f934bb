"""`python -m ensemble_runtime serve` as its users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.http
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PATIENCE = 60.0
COLUMNS = 4


@dataclass
class Server:
    """A runtime of the command line; its process is the supervisor."""

    process: subprocess.Popen[bytes]
    log: Path

    def address(self) -> str:
        """Where it serves, as soon as it is ready."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            for line in self.log.read_text().splitlines():
                if line.startswith("{") and (entry := json.loads(line))["message"] == "ready":
                    return f"127.0.0.1:{entry['port']}"
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        pytest.fail(f"not ready in time\n{self.log.read_text()}")

    def client(self) -> tritonclient.http.InferenceServerClient:
        """The official client."""
        return tritonclient.http.InferenceServerClient(self.address(), network_timeout=PATIENCE)

    def infer(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """One request through a connection of its own."""
        tensor = tritonclient.http.InferInput("x", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        client = self.client()
        try:
            answer: NDArray[np.float32] = client.infer("ensemble", [tensor]).as_numpy("y")
            return answer
        finally:
            client.close()

    def ready(self) -> tuple[bool, str]:
        """What the readiness probe says."""
        try:
            with urllib.request.urlopen(f"http://{self.address()}/v2/health/ready", timeout=PATIENCE) as answer:
                return True, answer.read().decode()
        except urllib.error.HTTPError as error:
            assert error.code == 503
            return False, error.read().decode()

    def metric(self, name: str) -> dict[str, float]:
        """Samples of a metric by their labels."""
        with urllib.request.urlopen(f"http://{self.address()}/metrics", timeout=PATIENCE) as answer:
            found = re.findall(rf"^{name}({{.*?}})? (\S+)$", answer.read().decode(), re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def pid(self, role: str) -> int | None:
        """The pid of a process by its role, e.g. combiner or member@device."""
        for labels in self.metric("ensemble_process_resident_bytes"):
            if f'role="{role}"' in labels and (pid := re.search(r'pid="(\d+)"', labels)):
                return int(pid[1])
        return None

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Wait until a condition holds."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, f"not within {seconds} s\n{self.log.read_text()}"
            time.sleep(0.005)

    def processes(self) -> list[psutil.Process]:
        """All its living processes: they share its session."""
        return [p for p in psutil.process_iter(["status"]) if p.info["status"] != "zombie" and self._owns(p.pid)]

    def _owns(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.process.pid
        except OSError:
            return False

    def assert_gone(self, seconds: float = 2.0) -> None:
        """No process is left."""
        self.until(lambda: not self.processes(), seconds)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """serve(config, *options): a server that may not be ready yet; killed at the end, should it still run."""
    started: list[Server] = []

    def start(config: dict[str, Any], *options: str) -> Server:
        file = tmp_path / f"{len(started)}.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "ensemble_runtime", "serve", str(file), "--cache", str(tmp_path / "cache")]
        command += options
        log = file.with_suffix(".log")
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        started.append(Server(process, log))
        return started[-1]

    yield start
    for server in started:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server.assert_gone()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, NDArray[np.float32]]:
    """Two ONNX files, each of one matrix, with their matrices."""
    folder, random = tmp_path_factory.mktemp("onnx"), np.random.default_rng(0)
    return {
        _linear(folder / f"{i}.onnx", matrix): matrix for i, matrix in enumerate(random.random((2, COLUMNS, 3), "f4"))
    }


def _linear(path: Path, matrix: NDArray[np.float32]) -> Path:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in zip("xy", matrix.shape, strict=True)
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "linear", tensors[:1], tensors[1:],
        [numpy_helper.from_array(matrix, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture
def config(weights: dict[Path, NDArray[np.float32]]) -> dict[str, Any]:
    """The mean of the two models, on the first core."""
    core = min(os.sched_getaffinity(0))
    device = {"name": "cpu", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1 << 30, "cores": [core]}
    return {
        "name": "ensemble",
        "members": [
            {"name": f"m{i}", "model": {"uri": path.as_uri(), "format": "ONNX"}} for i, path in enumerate(weights)
        ],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
        "combination": {"rule": "Mean", "predictions": "Values"},
        "devices": [device],
        "cells": [{"device": "cpu", "member": f"m{i}", "batchSize": 8} for i in range(len(weights))],
        "listen": {"port": 0},
    }


@pytest.fixture
def slow_config(config: dict[str, Any]) -> dict[str, Any]:
    """One simulated member that takes half a second."""
    device = {"name": "sim", "kind": "Simulated", "type": "sim", "memoryBytes": 1, "seconds": {"m0": {"1": 0.5}}}
    cells = [{"device": "sim", "member": "m0", "batchSize": 8}]
    return {**config, "members": config["members"][:1], "devices": [device], "cells": cells}
