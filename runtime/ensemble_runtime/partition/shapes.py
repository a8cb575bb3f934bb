"""The datatype and shape of every tensor of a model, at one shape of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.checks import first_line

Array = NDArray[Any]
_SMALL = 4096
"""Bytes; a weight of no more may be a shape."""


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
    names = _names(model)
    known = _inferred(model, shapes)
    found = {name: known[name] for name in names if name in known}
    wanted = [name for name in names if name not in known]
    return found | _run(model, found, wanted) if wanted else found


def inferred(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether inference tells all shapes, so that they can be found without the weights."""
    return certain(model, shapes).issuperset(_names(model))


def certain(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The tensors whose shapes inference tells: these are the same whatever the data."""
    return frozenset(_inferred(model, shapes))


def _names(model: onnx.ModelProto) -> list[str]:
    """The tensors of a model: its inputs and what its nodes put out."""
    return [x.name for x in model.graph.input] + [name for x in model.graph.node for name in x.output if name]


def _inferred(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Found]:
    try:
        graph = onnx.shape_inference.infer_shapes(_at(model, shapes), data_prop=True, strict_mode=False).graph
    except Exception as error:  # inference errors have no common base
        raise ModelInvalidError(f"shapes cannot be inferred: {first_line(error)}") from error
    return {x.name: y for x in (*graph.input, *graph.value_info, *graph.output) if (y := _found(x)) is not None}


def without_weights(model: onnx.ModelProto, keep: Set[str] = frozenset()) -> onnx.ModelProto:
    """The model with only the names and types of its large weights: all that shapes depend on, and little to copy.

    Args:
        model: A model, which may have lost its weights before.
        keep: Weights to keep, however large.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    given, graph = model.graph, light.graph
    graph.name = given.name
    graph.node.extend(given.node)
    graph.input.extend(given.input)
    graph.output.extend(given.output)
    graph.sparse_initializer.extend(given.sparse_initializer)
    small = [x for x in given.initializer if x.ByteSize() <= _SMALL or x.name in keep]
    left_out = {x.name for x in given.initializer} - {x.name for x in small}
    graph.initializer.extend(small)
    # What older tools wrote about tensors between the operators may not fit these shapes.
    made = {name for node in given.node for name in node.output}
    graph.value_info.extend(x for x in given.value_info if x.name not in made)
    graph.value_info.extend(
        helper.make_tensor_value_info(x.name, x.data_type, list(x.dims))
        for x in given.initializer
        if x.name in left_out
    )
    return light


def _at(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    fixed = without_weights(model)
    for value in fixed.graph.input:
        tensor = value.type.tensor_type
        tensor.shape.Clear()
        for size in shapes[value.name]:
            tensor.shape.dim.add().dim_value = size
    # Names of dimensions say nothing at fixed shapes.
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
    name: str = np.dtype(helper.tensor_dtype_to_np_dtype(datatype)).name
    return name


def sample(model: onnx.ModelProto, inputs: Mapping[str, Found]) -> dict[str, Array]:
    """Inputs on which a model can be run: zeros, unless it takes only others.

    Which branch a model takes may depend on an input, such as a sampling rate, and only one may fit the shapes. So
    where zeros are refused, the whole numbers are tried that the model compares such an input with.
    """
    tries = list(_samples(model, inputs))
    if len(tries) == 1:
        return tries[0]
    try:
        return _ran(model, tries, [x.name for x in model.graph.output])[0]
    except ModelInvalidError:
        return tries[0]


def _run(model: onnx.ModelProto, known: Mapping[str, Found], wanted: list[str]) -> dict[str, Found]:
    """Run the model on a sample, with what is wanted as outputs."""
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    outputs = {x.name for x in model.graph.output}
    telling.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    _, answers = _ran(telling, list(_samples(model, known)), wanted)
    return {name: _of(answer) for name, answer in zip(wanted, answers, strict=True) if isinstance(answer, np.ndarray)}


def _ran(model: onnx.ModelProto, tries: Sequence[dict[str, Array]], wanted: list[str]) -> tuple[dict[str, Array], Any]:
    """The first sample that the model can be run on, and what it answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for feeds in tries[:-1]:
            with suppress(Exception):  # the next one may fit
                return feeds, session.run(wanted, feeds)
        return tries[-1], session.run(wanted, tries[-1])
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise ModelInvalidError(f"cannot be run by ONNX Runtime: {first_line(error)}") from error


def _samples(model: onnx.ModelProto, inputs: Mapping[str, Found]) -> Iterator[dict[str, Array]]:
    zeros = {x.name: np.zeros(inputs[x.name].shape, inputs[x.name].datatype) for x in model.graph.input}
    yield zeros
    weights = {x.name: x for x in model.graph.initializer if x.ByteSize() <= _SMALL}
    for node in model.graph.node:
        if node.op_type != "Equal":
            continue
        for name, other in (node.input, reversed(node.input)):
            if name in zeros and zeros[name].dtype.kind in "iu" and other in weights:
                value = numpy_helper.to_array(weights[other])
                if value.size == 1:
                    yield zeros | {name: np.full_like(zeros[name], value.item())}


def _of(answer: np.ndarray[Any, Any]) -> Found:
    return Found(answer.dtype.name, answer.shape)
