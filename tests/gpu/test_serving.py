"""Cells on a GPU, served by the command: they answer, are killed, come back, and give the GPU back in the end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ensemble_runtime.config import Device, PartitionObjective
from ensemble_runtime.devices import nvidia

_PATH = Path(__file__).parents[1] / "runtime" / "serve" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("serve_conftest", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_SERVE = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _SERVE
_SPEC.loader.exec_module(_SERVE)
serve = _SERVE.serve

Serve = Callable[[dict[str, Any]], Any]

pytestmark = pytest.mark.timeout(300)  # a pair of devices is measured anew whenever its cell starts


def described(device: Device) -> dict[str, Any]:
    return json.loads(device.model_dump_json(by_alias=True, exclude_none=True))


def config(case: Any, devices: list[Device], cells: list[dict[str, Any]]) -> dict[str, Any]:
    member, path, (x,), (y,) = case
    wanted = member.partition
    partition = {} if wanted is None else {"partition": json.loads(wanted.model_dump_json(by_alias=True))}
    return {
        "name": "ensemble",
        "members": [{"name": member.name, "model": {"uri": path.as_uri(), "format": "ONNX"}} | partition],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape)}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": list(y.shape)}],
        "combination": {"rule": "Mean", "predictions": "Values"},
        "devices": [described(device) for device in devices],
        "cells": cells,
        "listen": {"port": 0},
    }


def check(server: Any, whole: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> None:
    for rows in (1, 4, 3, 9):
        x = np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float32)
        np.testing.assert_allclose(server.infer(x), whole.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)


def check_another_life(server: Any, gpu: Device, whole: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> None:
    """Kill its cell, ask the next one, and end it."""
    role = f"stack@{gpu.name}"
    pid = server.pid(role)
    os.kill(pid, signal.SIGKILL)
    server.until(lambda: server.pid(role) not in (None, pid))
    server.until(lambda: server.ready()[0])
    check(server, whole, shape)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    server.assert_gone()


def test_a_member_serves_on_the_gpu_and_comes_back(serve: Serve, case: Callable[..., Any], gpu: Device) -> None:
    made = case(hidden=128)
    shape = made[2][0].shape
    whole = onnxruntime.InferenceSession(str(made[1]), providers=["CPUExecutionProvider"])
    part = gpu.model_copy(update={"memory_bytes": 8 * 2**30})
    before = nvidia.find(str(gpu.uuid)).free_bytes
    server = serve(config(made, [part], [{"device": gpu.name, "member": "stack", "batchSize": 4}]))
    check(server, whole, shape)
    assert before - nvidia.find(str(gpu.uuid)).free_bytes > 64 * 2**20
    check_another_life(server, gpu, whole, shape)
    server.until(lambda: before - nvidia.find(str(gpu.uuid)).free_bytes < 64 * 2**20)


@pytest.mark.parametrize("objective", list(PartitionObjective))
def test_a_member_serves_on_the_gpu_and_a_core(
    serve: Serve, case: Callable[..., Any], gpu: Device, core: Device, objective: PartitionObjective
) -> None:
    small = objective is PartitionObjective.MEMORY
    made = case(hidden=256, layers=4, steps=32, objective=objective, latency_ms=1000 if small else None)
    shape = made[2][0].shape
    whole = onnxruntime.InferenceSession(str(made[1]), providers=["CPUExecutionProvider"])
    cell = {"device": gpu.name, "secondDevice": core.name, "member": "stack", "batchSize": 4}
    part = gpu.model_copy(update={"memory_bytes": 8 * 2**30})
    server = serve(config(made, [part, core], [cell]))
    check(server, whole, shape)
    check_another_life(server, gpu, whole, shape)


def test_the_command_shows_how_gpu_and_core_share_a_model(case: Callable[..., Any], gpu: Device) -> None:
    _, path, inputs, _ = case(hidden=256, layers=4, steps=32)
    shape = ",".join(map(str, (1, *inputs[0].shape)))
    command = [sys.executable, "-m", "ensemble_operator.cli.main", "partition", str(path), "--devices", "gpu,cpu"]
    done = subprocess.run(
        [*command, "--shape", f"x={shape}", "-o", "json"], capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["choice"]["makespanMs"] > 0 and found["measuredMs"] > 0
