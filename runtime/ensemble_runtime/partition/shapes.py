"""The datatype and shape of every tensor of a model, at one shape of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.checks import first_line


@dataclass(frozen=True)
class Found:
    """What is known of a tensor."""

    datatype: str
    shape: tuple[int, ...]


def shapes_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Found]:
    """Find the shapes of all tensors; what is no tensor is left out.

    Args:
        model: A model whose constants are initialisers.
        shapes: The shape of each input.

    Raises:
        ModelInvalidError: the shapes do not fit the model, or the model cannot be run.
    """
    fixed = _at(model, shapes)
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True, strict_mode=False)
    except Exception as error:  # inference errors have no common base
        raise ModelInvalidError(f"shapes cannot be inferred: {first_line(error)}") from error
    graph = inferred.graph
    found = {x.name: y for x in (*graph.input, *graph.value_info, *graph.output) if (y := _found(x)) is not None}
    wanted = [name for node in graph.node for name in node.output if name and name not in found]
    return found | _run(model, found, wanted) if wanted else found


def _at(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        tensor = value.type.tensor_type
        tensor.shape.Clear()
        for size in shapes[value.name]:
            tensor.shape.dim.add().dim_value = size
    # Names of dimensions say nothing at fixed shapes, and what older tools wrote between the operators may not fit.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def _found(value: onnx.ValueInfoProto) -> Found | None:
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return Found(_numpy(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim))


def _numpy(datatype: int) -> str:
    name: str = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(datatype)).name
    return name


def _run(model: onnx.ModelProto, known: Mapping[str, Found], wanted: list[str]) -> dict[str, Found]:
    """Run the model on zeros, with what is wanted as outputs."""
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    outputs = {x.name for x in model.graph.output}
    telling.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    feeds = {x.name: np.zeros(known[x.name].shape, known[x.name].datatype) for x in model.graph.input}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(telling.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answers = session.run(wanted, feeds)
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise ModelInvalidError(f"cannot be run by ONNX Runtime: {first_line(error)}") from error
    return {name: _of(answer) for name, answer in zip(wanted, answers, strict=True) if isinstance(answer, np.ndarray)}


def _of(answer: np.ndarray[Any, Any]) -> Found:
    return Found(answer.dtype.name, answer.shape)
