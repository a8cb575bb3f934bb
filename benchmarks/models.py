"""The model files that the benchmarks serve: untrained, since only their cost matters, and the same on every run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ensemble_runtime.config import Datatype, Member, ModelFormat, ModelSource, TensorSpec

# torch calls TorchScript deprecated; it is served all the same.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

PIXELS, HIDDEN, CLASSES = 784, 256, 10

TINY_INPUT = TensorSpec(name="x", datatype=Datatype.FP32, shape=(PIXELS,))
IMAGE_INPUT = TensorSpec(name="x", datatype=Datatype.FP32, shape=(3, 64, 64))
CLASSES_OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(CLASSES,))


def member(path: Path) -> Member:
    """A member of an ensemble, named after its file."""
    kind = ModelFormat.ONNX if path.suffix == ".onnx" else ModelFormat.TORCH_SCRIPT
    return Member(name=path.stem, model=ModelSource(uri=path.absolute().as_uri(), format=kind))


def tiny_torch(folder: Path, count: int) -> list[Path]:
    """`count` TorchScript MLPs 784 -> 256 -> 10."""
    return [_script(folder / f"tiny-{i}.pt", _mlp, i, torch.zeros(1, PIXELS)) for i in range(count)]


def tiny_onnx(folder: Path, count: int) -> list[Path]:
    """`count` ONNX MLPs 784 -> 256 -> 10."""
    return [_onnx_mlp(folder / f"tiny-onnx-{i}.onnx", i) for i in range(count)]


def convolutional(folder: Path, widths: Sequence[int]) -> list[Path]:
    """A TorchScript CNN for 3 x 64 x 64 images of each width; cost grows with about the square of the width."""
    example = torch.zeros(1, *IMAGE_INPUT.shape)
    return [_script(folder / f"cnn-{width}.pt", partial(_cnn, width), width, example) for width in widths]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES), nn.Softmax(-1))


def _cnn(width: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
        )

    return nn.Sequential(
        block(3, width), nn.MaxPool2d(2), block(width, 2 * width), nn.MaxPool2d(2), block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES), nn.Softmax(-1),
    )  # fmt: skip


def _script(path: Path, build: Callable[[], nn.Module], seed: int, example: torch.Tensor) -> Path:
    torch.manual_seed(seed)
    torch.jit.trace(build().eval(), example).save(str(path))
    return path


def _onnx_mlp(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    first = random.normal(size=(PIXELS, HIDDEN), scale=PIXELS**-0.5).astype(np.float32)
    second = random.normal(size=(HIDDEN, CLASSES), scale=HIDDEN**-0.5).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["c"]),
            helper.make_node("Softmax", ["c"], ["y"], axis=-1),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", PIXELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", CLASSES])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
