"""Members on a GPU: found, bound, loaded, and as right as on a core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.config import (
    Datatype,
    Device,
    DeviceKind,
    Member,
    ModelFormat,
    ModelSource,
    Precision,
    TensorSpec,
)
from ensemble_runtime.devices import nvidia
from ensemble_runtime.devices.local import discover
from ensemble_runtime.errors import DeviceUnavailableError, OutOfMemoryError
from ensemble_runtime.members.loading import load
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.profiler import ProfileRequest, profile


def test_the_machine_tells_of_its_gpu(gpu: Device) -> None:
    (found, *_others) = nvidia.gpus()
    assert found.uuid == gpu.uuid and found.uuid.startswith(("GPU-", "MIG-"))
    assert found.product.startswith("NVIDIA-") and " " not in found.product
    assert found.free_bytes > 2**30
    names = [device.name for device in discover() if device.kind is DeviceKind.GPU]
    assert names[0] == "gpu0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == found.uuid


def convolutional(folder: Path, *, half: bool = False) -> Path:
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    chance = np.random.default_rng(0)
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (32 * 8 * 8, 10)}
    weights = [
        numpy_helper.from_array(chance.normal(size=shape, scale=0.1).astype(dtype), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node("Flatten", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "c"], ["u"]),
        helper.make_node("Softmax", ["u"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("x", kind, ["rows", 3, 32, 32])],
        [helper.make_tensor_value_info("y", kind, ["rows", 10])],
        weights,
    )
    path = folder / "convolutional.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("half", [False, True])
def test_an_onnx_member_answers_as_on_a_core(gpu: Device, core: Device, tmp_path: Path, half: bool) -> None:
    path = convolutional(tmp_path, half=half)
    datatype = Datatype.FP16 if half else Datatype.FP32
    source = ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX)
    member = Member(name="m", model=source, precision=Precision.FP16 if half else Precision.FP32)
    x = TensorSpec(name="x", datatype=datatype, shape=(3, 32, 32))
    y = TensorSpec(name="y", datatype=datatype, shape=(10,))
    there, here = (load(member, path, (x,), (y,), device) for device in (gpu, core))
    tolerance = 2e-2 if half else 1e-5
    for rows in (1, 7, 32):
        batch = np.random.default_rng(rows).random((rows, 3, 32, 32)).astype(np.float16 if half else np.float32)
        (found,), (right,) = there.predict([batch]), here.predict([batch])
        np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance)


def test_a_recurrent_member_answers_as_on_a_core(gpu: Device, core: Device, case: Callable[..., Any]) -> None:
    for kind in ("LSTM", "GRU"):
        member, path, inputs, outputs = case(kind)
        there, here = (OnnxModel(member, path, inputs, outputs, device) for device in (gpu, core))
        for rows in (1, 5):
            batch = np.random.default_rng(rows).normal(size=(rows, *inputs[0].shape)).astype(np.float32)
            # cuDNN multiplies in TF32 here all the same: a GRU of five rows was off by 5e-4 on an H200.
            np.testing.assert_allclose(there.predict([batch])[0], here.predict([batch])[0], rtol=2e-3, atol=2e-3)


def test_lack_of_memory_is_told_as_such(gpu: Device, case: Callable[..., Any]) -> None:
    """The cell's part of the GPU is a limit of its own."""
    member, path, inputs, outputs = case(hidden=512)
    small = gpu.model_copy(update={"memory_bytes": 2**20})
    with pytest.raises(OutOfMemoryError, match="memory"):
        load(member, path, inputs, outputs, small)


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(gpu: Device) -> None:
    with pytest.raises(DeviceUnavailableError, match=str(gpu.uuid)):
        nvidia.find("GPU-00000000-0000-0000-0000-000000000000")


def test_a_member_is_profiled(gpu: Device, case: Callable[..., Any], tmp_path: Path) -> None:
    member, _, inputs, outputs = case(hidden=256)
    request = ProfileRequest(members=(member,), inputs=inputs, outputs=outputs, devices=(gpu,), batch_sizes=(1, 8, 64))
    records = [record for record in profile(request, tmp_path / "cache") if "seconds" in record]
    settled = {record["batchSize"]: record for record in records}
    assert sorted(settled) == [1, 8, 64]
    weights = 2 * 4 * (8 * 256 * 256 + 8 * 256)
    for record in settled.values():
        assert 0 < record["seconds"] < 1
        assert weights < record["memoryBytes"] < 4 * 2**30, "the context counts"
    assert settled[64]["seconds"] < 64 * settled[1]["seconds"]


TORCH = """
import sys
from pathlib import Path
from ensemble_runtime.config import Datatype, Device, DeviceKind, Member, ModelFormat, ModelSource, TensorSpec
from ensemble_runtime.devices.binding import bind
path, uuid = Path(sys.argv[1]), sys.argv[2]
gpu = Device(name="gpu0", kind=DeviceKind.GPU, type="gpu", memory_bytes=2**33, uuid=uuid)
core = Device(name="cpu0", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**33, cores=(0,))
print(bind(gpu))
import numpy as np
import torch
from ensemble_runtime.members.loading import load
torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 5)
net = torch.nn.Sequential(*layers).eval()
example = torch.rand(2, 3, 32, 32)
if path.suffix == ".pt":
    torch.jit.trace(net, example).save(str(path))
    kind = ModelFormat.TORCH_SCRIPT
else:
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: rows},)), path)
    kind = ModelFormat.TORCH_EXPORT
source = ModelSource(uri=path.as_uri(), format=kind)
member = Member(name="m", model=source)
x = TensorSpec(name="x", datatype=Datatype.FP32, shape=(3, 32, 32))
y = TensorSpec(name="y", datatype=Datatype.FP32, shape=(5,))
torch.backends.cudnn.allow_tf32 = False
models = [load(member, path, (x,), (y,), device) for device in (gpu, core)]
for rows in (1, 7):
    batch = np.random.default_rng(rows).random((rows, 3, 32, 32)).astype(np.float32)
    there, here = (model.predict([batch])[0] for model in models)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
assert torch.cuda.memory_allocated() > 8 * 30 * 30 * 5 * 4
"""


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_a_torch_member_answers_as_on_a_core(gpu: Device, tmp_path: Path, suffix: str) -> None:
    """In a process of its own: it has to be bound before torch is imported."""
    pytest.importorskip("torch")
    command = [sys.executable, "-c", TORCH, str(tmp_path / f"net{suffix}"), str(gpu.uuid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(gpu.uuid) in done.stdout
