"""Ensembles that span two runtimes on this machine: a head and a shard, each started as a cluster starts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PATIENCE = 60.0
COLUMNS, CLASSES = 4, 3
HEAD_MEMBERS, SHARD_MEMBERS = ("m0", "m1"), ("m2", "m3")
WEIGHTS = {"m0": 1.0, "m1": 2.0, "m2": 0.5, "m3": 0.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Runtime:
    """A runtime of the command line; its process is the supervisor."""

    config: dict[str, Any]
    file: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def port(self) -> int:
        return int(self.config["listen"]["port"])

    @property
    def log(self) -> str:
        return self.file.with_suffix(".log").read_text()

    def start(self) -> None:
        """Start it, perhaps again, on the same port."""
        self.file.write_text(json.dumps(self.config))
        cache = self.file.parent / "cache"
        command = [sys.executable, "-m", "ensemble_runtime", "serve", str(self.file), "--cache", str(cache)]
        with self.file.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        """Wait until a condition holds."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, f"not within {seconds} s\n{self.log[-6000:]}"
            time.sleep(0.02)

    def ready(self) -> Runtime:
        """Itself, as soon as it is ready."""
        self.until(lambda: self.get("/v2/health/ready")[0] == 200 or self._dead())
        return self

    def _dead(self) -> bool:
        assert self.process.poll() is None, self.log[-6000:]
        return False

    def post(
        self, path: str, rows: NDArray[np.float32], headers: dict[str, str], **fields: Any
    ) -> tuple[int, bytes, int]:
        """A binary request of input x: status, body, and how much of it is JSON."""
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "shape": list(rows.shape),
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": rows.nbytes},
                    }
                ],
                **fields,
            }
        ).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            head + rows.tobytes(),
            {"Inference-Header-Content-Length": str(len(head)), **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                body = answer.read()
                return answer.status, body, int(answer.headers.get("Inference-Header-Content-Length", len(body)))
        except urllib.error.HTTPError as error:
            body = error.read()
            return error.code, body, len(body)

    def infer(self, rows: NDArray[np.float32], **fields: Any) -> tuple[int, dict[str, Any], dict[str, NDArray[Any]]]:
        """A request to the ensemble: status, JSON, and the tensors of the answer by name."""
        fields.setdefault("parameters", {}).setdefault("binary_data_output", True)
        status, body, size = self.post("/v2/models/ensemble/infer", rows, {}, **fields)
        document, offset, tensors = json.loads(body[:size]), size, {}
        for output in document.get("outputs", []):
            end = offset + output["parameters"]["binary_data_size"]
            tensors[output["name"]] = np.frombuffer(body[offset:end], "<f4").reshape(output["shape"])
            offset = end
        return status, document, tensors

    def infer_json(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same in JSON both ways."""
        tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/ensemble/infer", json.dumps({"inputs": [tensor]}).encode()
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            output = json.loads(answer.read())["outputs"][0]
        return np.array(output["data"], "f4").reshape(output["shape"])

    def metric(self, name: str) -> dict[str, float]:
        """Samples of a metric by their labels."""
        found = re.findall(rf"^{name}({{.*?}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def pid(self, role: str) -> int:
        """The pid of a process by its role, e.g. gateway or member@device."""
        for labels in self.metric("ensemble_process_resident_bytes"):
            if re.search(rf'role="[^"]*{re.escape(role)}', labels) and (pid := re.search(r'pid="(\d+)"', labels)):
                return int(pid[1])
        raise AssertionError(f"no process is {role}")

    def kill(self) -> None:
        """kill -9 of all its processes at once, as when a pod or a node is lost."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # when one is lost, others end by themselves
                process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.until(lambda: not self.processes())

    def processes(self) -> list[psutil.Process]:
        """All its living processes: they share its session."""
        return [p for p in psutil.process_iter(["status"]) if p.info["status"] != "zombie" and self._owns(p.pid)]

    def _owns(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.process.pid
        except OSError:
            return False


Start = Callable[[dict[str, Any]], Runtime]


def _starter(folder: Path) -> Iterator[Start]:
    started: list[Runtime] = []

    def start(config: dict[str, Any]) -> Runtime:
        started.append(Runtime(config, folder / f"{len(started)}.json"))
        return started[-1]

    yield start
    for runtime in started:
        runtime.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(config): a runtime that may not be ready yet; killed at the end."""
    yield from _starter(tmp_path)


@pytest.fixture(scope="session")
def start_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The same, killed after all tests."""
    yield from _starter(tmp_path_factory.mktemp("shared"))


@dataclass(frozen=True)
class Models:
    """ONNX files of four members, and what they compute."""

    folder: Path
    matrices: dict[str, NDArray[np.float32]]
    stacking: NDArray[np.float32]
    """The matrix of a stacking model that reads all four."""

    def uri(self, name: str) -> str:
        return (self.folder / f"{name}.onnx").as_uri()

    def outputs(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Class probabilities, worked out here."""
        logits = rows.astype("f8") @ self.matrices[name].astype("f8")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """m0 to m3; `rooted` is m3, but NaN where the first column is negative."""
    folder, random = tmp_path_factory.mktemp("onnx"), np.random.default_rng(0)
    names = (*HEAD_MEMBERS, *SHARD_MEMBERS)
    matrices = {name: random.normal(size=(COLUMNS, CLASSES)).astype("f4") for name in names}
    for name, matrix in matrices.items():
        _save(folder / f"{name}.onnx", matrix, [("MatMul", ["x", "w"], "z"), ("Softmax", ["z"], "y")])
    rooted = [("MatMul", ["x", "w"], "z"), ("Softmax", ["z"], "p"), ("MatMul", ["x", "first"], "f"),
              ("Sqrt", ["f"], "s"), ("Sub", ["s", "s"], "zero"), ("Add", ["p", "zero"], "y")]  # fmt: skip
    _save(folder / "rooted.onnx", matrices["m3"], rooted)
    stacking = random.random((len(names) * CLASSES, CLASSES), "f4")
    _save(folder / "stacked.onnx", stacking, [("MatMul", ["x", "w"], "y")])
    return Models(folder, matrices, stacking)


def _save(path: Path, matrix: NDArray[np.float32], nodes: list[tuple[str, list[str], str]]) -> None:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in zip("xy", matrix.shape, strict=True)
    ]
    first = np.eye(matrix.shape[0], 1, dtype="f4")
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes], "member", ends[:1], ends[1:],
        [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(first, "first")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("correct-horse\n")
    return file


@dataclass(frozen=True)
class Configs:
    """The configurations of an ensemble in two parts."""

    models: Models
    token_file: Path

    def shard(self, files: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """Has m2 and m3."""
        return self._runtime(SHARD_MEMBERS, SHARD_MEMBERS, files or {}) | {
            "shard": {"tokenFile": str(self.token_file)},
            **changes,
        }

    def head(self, shard_port: int, **changes: Any) -> dict[str, Any]:
        """Has m0 and m1, and reaches the others at a port of this machine."""
        config = self._runtime((*HEAD_MEMBERS, *SHARD_MEMBERS), HEAD_MEMBERS, {})
        remote = {"name": "far", "url": f"http://127.0.0.1:{shard_port}", "tokenFile": str(self.token_file)}
        cells = [{"device": "far", "member": name, "batchSize": 8} for name in SHARD_MEMBERS]
        return config | {"remotes": [remote], "cells": config["cells"] + cells, **changes}

    def _runtime(self, members: tuple[str, ...], local: tuple[str, ...], files: dict[str, str]) -> dict[str, Any]:
        core = min(os.sched_getaffinity(0))
        device = {"name": "cpu", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1 << 30, "cores": [core]}
        return {
            "name": "ensemble",
            "members": [
                {
                    "name": name,
                    "weight": WEIGHTS[name],
                    "model": {"uri": self.models.uri(files.get(name, name)), "format": "ONNX"},
                }
                for name in members
            ],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}],
            "combination": {"rule": "Mean"},
            "devices": [device],
            "cells": [{"device": "cpu", "member": name, "batchSize": 8} for name in local],
            "serving": {"hosting": "PerDevice"},
            "listen": {"port": free_port()},
        }


@pytest.fixture(scope="session")
def configs(models: Models, token_file: Path) -> Configs:
    return Configs(models, token_file)


@pytest.fixture(scope="session")
def shard(start_once: Start, configs: Configs) -> Runtime:
    """A shard for those that do it no harm."""
    return start_once(configs.shard()).ready()
