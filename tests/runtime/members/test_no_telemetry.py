"""Serving a model tells nobody about it."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ensemble_runtime
import onnxruntime
from onnx import TensorProto, helper

row = ["n", 4]
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, row) for name in "xy")
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString())
"""


def test_onnx_runtime_keeps_no_device_id_and_no_events_to_send(tmp_path: Path) -> None:
    # Its telemetry is off by itself where one of these is set, as it is on many test machines.
    hidden = ("CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.rglob("*"))
