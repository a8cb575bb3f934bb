"""ONNX members through the real ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ensemble_runtime.config import Datatype, ModelFormat, Precision
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import warm_up

ONNX = ModelFormat.ONNX


def reference(path, rows):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["y"], {session.get_inputs()[0].name: rows})[0]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 70))
def test_answers_are_the_models_at_any_batch_size(loaded, spec, onnx_mlp, rows):
    path = onnx_mlp()
    model = loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX)
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    (answer,) = model.predict([x])
    np.testing.assert_allclose(answer, reference(path, x), rtol=1e-5)


def test_inputs_by_position_where_names_differ(loaded, spec, onnx_mlp):
    model = loaded(onnx_mlp(input_name="input.1"), [spec("image", 4)], [spec("s", 3), spec("y", 3)], ONNX)
    warm_up("m", model, [spec("image", 4)], [spec("s", 3), spec("y", 3)], 8)


def test_outputs_by_name_in_the_manifests_order(loaded, spec, onnx_mlp):
    path = onnx_mlp()
    x = np.ones((2, 4), np.float32)
    (y_alone,) = loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX).predict([x])
    y, _ = loaded(path, [spec("x", 4)], [spec("y", 3), spec("s", 3)], ONNX).predict([x])
    assert np.array_equal(y, y_alone)


def test_outputs_in_the_datatype_of_the_manifest(loaded, spec, onnx_mlp):
    model = loaded(onnx_mlp(), [spec("x", 4)], [spec("y", 3, datatype=Datatype.FP64)], ONNX)
    assert model.predict([np.ones((2, 4), np.float32)])[0].dtype == np.float64


def test_inputs_are_cast_within_their_kind(loaded, spec, onnx_mlp):
    path = onnx_mlp()
    model = loaded(path, [spec("x", 4, datatype=Datatype.FP64)], [spec("y", 3)], ONNX)
    x = np.random.default_rng(0).normal(size=(2, 4))
    np.testing.assert_allclose(model.predict([x])[0], reference(path, x.astype(np.float32)), rtol=1e-6)


def test_a_half_precision_graph_needs_fp16_and_gets_it(loaded, spec, onnx_mlp):
    path = onnx_mlp(half=True)
    model = loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX, Precision.FP16)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    (answer,) = model.predict([x])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, reference(path, x.astype(np.float16)), rtol=1e-2)
    with pytest.raises(ModelInvalidError, match=r"FP32 is asked for.*takes and gives FP16; set `precision: FP16`"):
        loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX)


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "precision", "message"),
    [
        ({}, {"x": (4,)}, {"y": (3,)}, "FP16", "FP16 is asked for.*set `precision: FP32`, or convert the file"),
        ({}, {"x": (4,)}, {"y": (3,)}, "BF16", "cannot compute in BF16"),
        ({"batch": 8}, {"x": (4,)}, {"y": (3,)}, "FP32", "input 'x' has a fixed batch of 8; export it with a variable"),
        ({}, {"x": (5,)}, {"y": (3,)}, "FP32", r"input 'x' has shape \[4\], the manifest's 'x' has \[5\]"),
        ({}, {"x": (2, 2)}, {"y": (3,)}, "FP32", r"shape \[4\], the manifest's 'x' has \[2, 2\]"),
        ({}, {"x": (-1,)}, {"y": (3,)}, "FP32", r"shape \[4\], the manifest's 'x' has \[-1\]"),
        ({}, {"x": (4,), "z": (4,)}, {"y": (3,)}, "FP32", r"the model has 1 inputs, the manifest has 2 \(x, z\)"),
        ({}, {"x": (4,)}, {"probabilities": (3,)}, "FP32", "the model has 2 outputs, the manifest has 1"),
    ],
)
def test_what_differs_from_the_manifest_is_named(loaded, spec, onnx_mlp, model, inputs, outputs, precision, message):
    with pytest.raises(ModelInvalidError, match=f"member 'm': .*{message}"):
        loaded(
            onnx_mlp(**model),
            [spec(name, *shape) for name, shape in inputs.items()],
            [spec(name, *shape) for name, shape in outputs.items()],
            ONNX,
            Precision(precision),
        )


def test_floats_for_an_input_of_whole_numbers_are_refused(loaded, spec, tmp_path):
    node = helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    path = tmp_path / "cast.onnx"
    graph = helper.make_graph([node], "cast", [ids], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ModelInvalidError, match="input 'ids' takes int64, the manifest's 'ids' is FP32"):
        loaded(path, [spec("ids", 4)], [spec("y", 4)], ONNX)
    (answer,) = loaded(path, [spec("ids", 4, datatype=Datatype.INT32)], [spec("y", 4)], ONNX).predict(
        [np.full((2, 4), 7, np.int32)]
    )
    assert np.array_equal(answer, np.full((2, 4), 7, np.float32))


def test_a_wrong_output_shape_shows_at_warm_up(loaded, spec, onnx_mlp):
    model = loaded(onnx_mlp(classes=5), [spec("x", 4)], [spec("y", 3)], ONNX)
    with pytest.raises(ModelInvalidError, match=r"member 'm': output 'y' has shape \[1, 5\], expected \[1, 3\]"):
        warm_up("m", model, [spec("x", 4)], [spec("y", 3)], 8)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x09" + bytes(100)], ids=["empty", "text", "zeros"])
def test_a_damaged_file_is_one_clear_line(loaded, spec, tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelInvalidError, match=r"^member 'm': cannot be loaded by ONNX Runtime [^\n]+$"):
        loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX)


def test_a_model_that_has_no_room_on_the_device_is_no_broken_one(loaded, spec, onnx_mlp, monkeypatch):
    def full(*_, **__):
        raise RuntimeError(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(OutOfMemoryError, match=r"^member 'm': cannot be loaded by ONNX Runtime .*Failed to allocate"):
        loaded(onnx_mlp(), [spec("x", 4)], [spec("y", 3)], ONNX)


def test_weights_in_side_files_which_no_digest_covers_are_refused(loaded, spec, onnx_mlp):
    path = onnx_mlp(save_as_external_data=True, location="side.bin", size_threshold=0)
    assert path.with_name("side.bin").exists()
    with pytest.raises(ModelInvalidError, match="keeps weights in side files; expected one file"):
        loaded(path, [spec("x", 4)], [spec("y", 3)], ONNX)


ALL_ONNX = """
import json, sys
from pathlib import Path
from ensemble_runtime.config import Device, Member, TensorSpec
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.members import checks, storage
from ensemble_runtime.members.loading import libraries, load
member, device, inputs, outputs = [json.loads(text) for text in sys.argv[1:5]]
member, device = Member(**member), Device(**device)
inputs, outputs = (tuple(TensorSpec(**spec) for spec in specs) for specs in (inputs, outputs))
bind(device)
__import__("importlib").import_module(libraries([member.model.format])[0])
model = load(member, storage.fetch(member.model, Path(sys.argv[5])).path, inputs, outputs, device)
checks.warm_up(member.name, model, inputs, outputs, 8)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_a_process_of_onnx_members_never_imports_torch(spec, onnx_mlp, core, tmp_path):
    member = {"name": "m", "model": {"uri": onnx_mlp().as_uri(), "format": "ONNX"}}
    documents = [member, core.model_dump(mode="json"), [spec("x", 4).model_dump()], [spec("y", 3).model_dump()]]
    finished = subprocess.run(
        [sys.executable, "-c", ALL_ONNX, *map(json.dumps, documents), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    modules = json.loads(finished.stdout)
    assert "onnxruntime" in modules
    assert "torch" not in modules
    assert "onnx" not in modules
