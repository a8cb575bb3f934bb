"""A partitioned member is a cell like any other: it answers, is killed, comes back, and ends with its runtime."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

Serve = Callable[[dict[str, Any]], Any]
STEPS, FEATURES, HIDDEN = 16, 24, 32
CORES = sorted(os.sched_getaffinity(0))
ROLE = f"stack@core-{CORES[0]}"
SECOND_ONLY = {"objective": "Memory", "latencyMs": 0.001}
"""With no bytes booked on the first device, all is on the second."""

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="two devices need two cores")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Two LSTM layers over rows of (steps, features), of which the last step is the answer."""
    random = np.random.default_rng(0)
    weights = {"last": np.array(-1), "one": np.array([1])}
    nodes = [helper.make_node("Transpose", ["x"], ["s0"], perm=[1, 0, 2])]
    for i, features in enumerate((FEATURES, HIDDEN)):
        weights[f"W{i}"] = random.normal(size=(1, 4 * HIDDEN, features), scale=0.2).astype(np.float32)
        weights[f"R{i}"] = random.normal(size=(1, 4 * HIDDEN, HIDDEN), scale=0.2).astype(np.float32)
        nodes.append(helper.make_node("LSTM", [f"s{i}", f"W{i}", f"R{i}"], [f"y{i}"], hidden_size=HIDDEN))
        nodes.append(helper.make_node("Squeeze", [f"y{i}", "one"], [f"s{i + 1}"]))
    nodes.append(helper.make_node("Gather", ["s2", "last"], ["y"], axis=0))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", STEPS, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "stack.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def on_two_cores(stack: Path, partition: dict[str, Any]) -> dict[str, Any]:
    devices = [
        {"name": f"core-{core}", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1 << 30, "cores": [core]}
        for core in CORES[:2]
    ]
    first, second = (device["name"] for device in devices)
    booked = {"scarceBytes": 0} if partition == SECOND_ONLY else {}
    model = {"uri": stack.as_uri(), "format": "ONNX"}
    return {
        "name": "ensemble",
        "members": [{"name": "stack", "model": model, "partition": partition}],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [STEPS, FEATURES]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [HIDDEN]}],
        "combination": {"rule": "Mean", "predictions": "Values"},
        "devices": devices,
        "cells": [{"device": first, "secondDevice": second, "member": "stack", "batchSize": 4} | booked],
        "listen": {"port": 0},
    }


def check(server: Any, whole: onnxruntime.InferenceSession) -> None:
    for rows in (1, 4, 3, 9):
        x = np.random.default_rng(rows).normal(size=(rows, STEPS, FEATURES)).astype(np.float32)
        np.testing.assert_allclose(server.infer(x), whole.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("partition", [{"objective": "Latency"}, SECOND_ONLY])
def test_a_partitioned_member_serves(serve: Serve, stack: Path, partition: dict[str, Any]) -> None:
    """Also one that is slower than it was to be, as beside neighbours that compute: with the bytes that are booked."""
    server = serve(on_two_cores(stack, partition))
    whole = onnxruntime.InferenceSession(str(stack), providers=["CPUExecutionProvider"])
    check(server, whole)
    if partition == SECOND_ONLY:
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        (told,) = (line for line in lines if line["message"] == "member partitioned")
        assert told["weight_bytes"][0] == 0
    for victim in ("the cell", "its second process"):
        pid = server.pid(ROLE)
        second = next(iter(psutil.Process(pid).children()), None)
        if victim == "the cell":
            os.kill(pid, signal.SIGKILL)
        elif second is not None:  # so small a model may be quicker without
            second.kill()
            with suppress(Exception):  # which is seen when it is needed
                server.infer(np.zeros((1, STEPS, FEATURES), np.float32))
        else:
            assert partition["objective"] == "Latency"
            break
        server.until(lambda pid=pid: server.pid(ROLE) not in (None, pid))
        server.until(lambda: server.ready()[0])
        server.until(lambda second=second: second is None or not second.is_running())
        check(server, whole)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    server.assert_gone()


def test_a_cell_whose_second_process_hangs_is_replaced_and_never_by_another_file(serve: Serve, stack: Path) -> None:
    server = serve(on_two_cores(stack, SECOND_ONLY) | {"serving": {"memberTimeoutMs": 1000}})
    right = stack.read_bytes()
    whole = onnxruntime.InferenceSession(right, providers=["CPUExecutionProvider"])
    check(server, whole)
    pid = server.pid(ROLE)
    (second,) = psutil.Process(pid).children()
    second.suspend()
    check(server, whole)  # late, by the cell that has taken its place
    assert server.pid(ROLE) not in (None, pid)
    assert not psutil.pid_exists(pid)
    server.until(lambda: not second.is_running())

    other = right.replace(b"stack", b"stock")  # the graph's name
    stack.write_bytes(other)
    pid = server.pid(ROLE)
    os.kill(pid, signal.SIGKILL)
    server.until(lambda: "was overwritten" in server.ready()[1])
    assert all(hashlib.sha256(content).hexdigest() in server.ready()[1] for content in (right, other))
    stack.write_bytes(right)
    server.until(lambda: server.ready()[0])
    check(server, whole)
