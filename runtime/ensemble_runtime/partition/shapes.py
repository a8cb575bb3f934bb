"""The datatype and shape of every tensor of a model, at one shape of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
Weights = Mapping[str, onnx.TensorProto]
"""By name."""
_SMALL = 4096
"""Bytes; a weight of no more may be a shape."""


@dataclass(frozen=True)
class Found:
    """What is known of a tensor."""

    datatype: str
    shape: tuple[int, ...]


def shapes_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], large: Weights) -> dict[str, Found]:
    """Find the shapes of all tensors; what is no tensor is left out.

    Args:
        model: A model whose constants are initialisers, without its large weights.
        shapes: The shape of each input.
        large: Those weights: where inference does not tell all, the model is run.

    Raises:
        ModelInvalidError: the shapes do not fit the model, or the model cannot be run.
    """
    names = _names(model)
    known = _inferred(model, shapes)
    found = {name: known[name] for name in names if name in known}
    wanted = [name for name in names if name not in known]
    return found | _run(whole(model, large), found, wanted) if wanted else found


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


def without_weights(
    given: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], weights: Weights
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A model with only the names and types of its large weights: all that shapes depend on, and little to copy.

    Args:
        given: What it is made of, but for the following.
        nodes: Its nodes.
        weights: All of them, by name.

    Returns:
        The model, and its large weights as they are: several models may have the same ones.
    """
    light = onnx.ModelProto(ir_version=given.ir_version)
    light.opset_import.extend(given.opset_import)
    light.functions.extend(given.functions)
    graph = light.graph
    graph.name = given.graph.name
    graph.node.extend(nodes)
    graph.input.extend(x for x in given.graph.input if x.name not in weights)
    graph.output.extend(given.graph.output)
    large = {name: weight for name, weight in weights.items() if weight.ByteSize() > _SMALL}
    graph.initializer.extend(weight for name, weight in weights.items() if name not in large)
    # What older tools wrote about tensors between the operators may not fit the shapes that are asked about.
    graph.value_info.extend(helper.make_tensor_value_info(x.name, x.data_type, list(x.dims)) for x in large.values())
    return light, large


def whole(light: onnx.ModelProto, large: Weights) -> onnx.ModelProto:
    """A model with a copy of its large weights."""
    model = onnx.ModelProto()
    model.CopyFrom(light)
    del model.graph.value_info[:]
    model.graph.initializer.extend(large.values())
    return model


def _at(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
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


def sample(model: onnx.ModelProto, inputs: Mapping[str, Found], large: Weights) -> dict[str, Array]:
    """Inputs on which a model can be run: zeros, unless it takes only others.

    Which branch a model takes may depend on an input, such as a sampling rate, and only one may fit the shapes. So
    where zeros are refused, the whole numbers are tried that the model compares such an input with.
    """
    tries = list(_samples(model, inputs))
    if len(tries) == 1:
        return tries[0]
    try:
        return _ran(whole(model, large), tries, [x.name for x in model.graph.output])[0]
    except ModelInvalidError:
        return tries[0]


def _run(model: onnx.ModelProto, known: Mapping[str, Found], wanted: list[str]) -> dict[str, Found]:
    """Run the model, which nobody else has, on a sample with what is wanted as outputs."""
    outputs = {x.name for x in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    _, answers = _ran(model, list(_samples(model, known)), wanted)
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
