"""The large image, built from the Dockerfile, serves members of every format on a CPU.

Its name keeps it out of `make test`: `make test-full-image` runs it, once in a while, since the image has 6.4 GB.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tritonclient import http as triton

from beds.images import FULL, build

pytestmark = pytest.mark.timeout(3600)
INSIDE = "/models"
ROWS, COLUMNS, CLASSES = 5, 6, 3


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    build(FULL, print)
    made = subprocess.run(["buildah", "from", FULL.name], capture_output=True, text=True, check=True).stdout.strip()
    yield made
    subprocess.run(["buildah", "rm", made], check=True, capture_output=True)


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(COLUMNS, CLASSES).eval()


def saved(folder: Path, net: torch.nn.Module) -> list[dict[str, object]]:
    """The same net in each format, as members."""
    example = torch.zeros(2, COLUMNS)
    torch.jit.save(torch.jit.trace(net, example), str(folder / "net.pt"))
    rows = torch.export.Dim("rows")
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=[{0: rows}]), folder / "net.pt2")
    weights = {name: numpy_helper.from_array(value.detach().numpy(), name) for name, value in net.named_parameters()}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", CLASSES])],
        list(weights.values()),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "net.onnx")
    formats = {"net.pt": "TorchScript", "net.pt2": "TorchExport", "net.onnx": "ONNX"}
    return [
        {"name": kind.lower(), "model": {"uri": f"file://{INSIDE}/{file}", "format": kind}}
        for file, kind in formats.items()
    ]


def test_members_of_every_format_are_served(container: str, net: torch.nn.Module, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = saved(tmp_path, net)
    config = {
        "name": "full",
        "members": members,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}],
        "combination": {"rule": "Mean", "predictions": "Values"},
        "devices": [{"name": "core", "kind": "CPU", "type": "cpu-1", "memoryBytes": 2**30, "cores": [0]}],
        "cells": [{"device": "core", "member": member["name"], "batchSize": 4} for member in members],
        "listen": {"port": port},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tmp_path.chmod(0o755)
    command = ["ensemble-runtime", "serve", f"{INSIDE}/config.json", "--cache", "/tmp/cache"]  # the container's
    volume = ["--volume", f"{tmp_path}:{INSIDE}:ro"]
    with subprocess.Popen(["buildah", "run", "--isolation", "chroot", *volume, container, "--", *command]) as server:
        try:
            client = triton.InferenceServerClient(f"127.0.0.1:{port}")
            until = time.monotonic() + 120
            while not _ready(client):
                assert server.poll() is None and time.monotonic() < until, "it does not get ready"
                time.sleep(0.2)
            x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
            given = triton.InferInput("x", x.shape, "FP32")
            given.set_data_from_numpy(x)
            answer = client.infer("full", [given]).as_numpy("y")
            np.testing.assert_allclose(answer, net(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
        finally:
            server.terminate()
            server.wait(60)  # buildah kills what runs in it


def _ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except OSError:
        return False
