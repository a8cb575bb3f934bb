"""Small real model files, made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

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
from ensemble_runtime.members.loading import load
from ensemble_runtime.members.model import Model

CORE = min(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def core() -> Device:
    """A device of one core."""
    return Device(name="cpu0", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=(CORE,))


@pytest.fixture
def loaded(core: Device) -> Callable[..., Model]:
    """Loads a file as a member."""

    def run(
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        model_format: ModelFormat,
        precision: Precision = Precision.FP32,
        allow_pickle: bool = False,
    ) -> Model:
        source = ModelSource(uri=path.as_uri(), format=model_format, allow_pickle=allow_pickle)
        member = Member(name="m", model=source, precision=precision)
        return load(member, path, tuple(inputs), tuple(outputs), core)

    return run


@pytest.fixture(scope="session")
def spec() -> Callable[..., TensorSpec]:
    """A tensor of the manifest."""

    def make(name: str, *shape: int, datatype: Datatype = Datatype.FP32, **limits: int) -> TensorSpec:
        return TensorSpec(name=name, datatype=datatype, shape=shape, **limits)

    return make


@pytest.fixture(scope="session")
def onnx_mlp(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes y = softmax(x w + b), s = sum of y; sizes, types and names as asked for."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("onnx")

    def make(
        batch: int | str = "n",
        features: int | str = 4,
        classes: int = 3,
        half: bool = False,
        input_name: str = "x",
        output_name: str = "y",
        **saving: object,
    ) -> Path:
        kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
        random = np.random.default_rng(0)
        rows = features if isinstance(features, int) else 4
        weights = [
            numpy_helper.from_array(random.normal(size=(rows, classes)).astype(dtype), "w"),
            numpy_helper.from_array(random.normal(size=classes).astype(dtype), "b"),
        ]
        graph = helper.make_graph(
            [
                helper.make_node("Gemm", [input_name, "w", "b"], ["logits"]),
                helper.make_node("Softmax", ["logits"], [output_name], axis=-1),
                helper.make_node("ReduceSum", [output_name], ["s"], keepdims=1, noop_with_empty_axes=1),
            ],
            "mlp",
            [helper.make_tensor_value_info(input_name, kind, [batch, features])],
            [
                helper.make_tensor_value_info("s", kind, None),
                helper.make_tensor_value_info(output_name, kind, [batch, classes]),
            ],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = folder / f"{len(list(folder.iterdir()))}.onnx"
        onnx.save(model, path, **saving)
        return path

    return make
