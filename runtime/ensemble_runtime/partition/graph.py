"""An ONNX model as a graph of operators: who reads what from whom, how large it is, and which weights it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.shapes import Found, shapes_of

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tensor:
    """What an operator puts out, or the model takes in, at one batch size."""

    name: str
    datatype: str
    """Numpy's name of the element type."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * np.dtype(self.datatype).itemsize


@dataclass(frozen=True)
class Operator:
    """One node of the model. Control flow is one operator with all that its branches and bodies read."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    """Tensors that it reads, each once; weights are apart."""
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    """Initialisers that it reads, each once."""


@dataclass(frozen=True)
class Graph:
    """A model's operators in topological order, at one batch size."""

    model: onnx.ModelProto
    """The model, each node with the name of its operator; constants are initialisers."""
    operators: tuple[Operator, ...]
    tensors: Mapping[str, Tensor]
    """Inputs and what operators put out."""
    weights: Mapping[str, int]
    """Bytes of each initialiser, whoever reads it."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Operator]:
        """The operators by name."""
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def nodes(self) -> Mapping[str, onnx.NodeProto]:
        """The model's nodes by the name of their operator."""
        return {node.name: node for node in self.model.graph.node}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Where in the order an operator is."""
        return {operator.name: i for i, operator in enumerate(self.operators)}

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """The operators that read a tensor."""
        found: dict[str, list[str]] = {}
        for operator in self.operators:
            for name in operator.inputs:
                found.setdefault(name, []).append(operator.name)
        return {name: tuple(operators) for name, operators in found.items()}

    @cached_property
    def producers(self) -> Mapping[str, str]:
        """The operator that puts out a tensor; the model's inputs have none."""
        return {output: operator.name for operator in self.operators for output in operator.outputs}

    @cached_property
    def predecessors(self) -> Mapping[str, tuple[str, ...]]:
        """The operators that an operator reads from, each once."""
        return {
            operator.name: tuple(dict.fromkeys(self.producers[x] for x in operator.inputs if x in self.producers))
            for operator in self.operators
        }

    @cached_property
    def successors(self) -> Mapping[str, tuple[str, ...]]:
        """The operators that read from an operator, each once."""
        found: dict[str, list[str]] = {operator.name: [] for operator in self.operators}
        for name, before in self.predecessors.items():
            for other in before:
                found[other].append(name)
        return {name: tuple(after) for name, after in found.items()}


@dataclass(frozen=True)
class Placement:
    """Which of two devices computes each operator, and in which order."""

    device: Mapping[str, int]
    """0 or 1, by operator."""
    order: tuple[str, ...] = ()
    """All operators in a topological order that each device keeps to; empty: the graph's own."""


def parse(model: onnx.ModelProto, shapes: Shapes) -> Graph:
    """Read a model.

    Shapes come from ONNX's inference; where that finds none, from running the model once on zeros.

    Args:
        model: Any ONNX model whose weights are inside it.
        shapes: The shape of each input, the batch included.

    Raises:
        ModelInvalidError: the model is no valid ONNX, an input has no shape here, or a value between operators is not
            a tensor, or an output is a constant.
    """
    tidy = _tidied(model)
    weights = {x.name for x in tidy.graph.initializer}
    if constant := [x.name for x in tidy.graph.output if x.name in weights]:
        raise ModelInvalidError(f"cannot be partitioned: output '{constant[0]}' is a constant")
    missing = [x.name for x in tidy.graph.input if x.name not in shapes]
    if missing:
        raise ModelInvalidError(f"no shape is given for input {', '.join(missing)}")
    return graph_of(tidy, shapes_of(tidy, shapes))


def graph_of(model: onnx.ModelProto, found: Mapping[str, Found]) -> Graph:
    """The graph of a model whose nodes have unique names and whose tensors' shapes are known."""
    weights = {x.name: _bytes_of(x) for x in model.graph.initializer}
    operators = tuple(_operator(node, weights) for node in model.graph.node)
    inputs = tuple(x.name for x in model.graph.input)
    names = [*inputs, *(output for operator in operators for output in operator.outputs)]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ModelInvalidError(f"cannot be partitioned: {unknown[0]} is no tensor of a known shape")
    return Graph(
        model=model,
        operators=operators,
        tensors={name: Tensor(name, found[name].datatype, found[name].shape) for name in names},
        weights={name: size for name, size in weights.items() if any(name in x.weights for x in operators)},
        inputs=inputs,
        outputs=tuple(x.name for x in model.graph.output),
    )


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node reads from the graph around it, those of its branches and bodies included."""
    yield from (name for name in node.input if name)
    for body in bodies(node):
        inner = {x.name for x in (*body.input, *body.initializer)} | {y for x in body.node for y in x.output}
        yield from (name for x in body.node for name in reads(x) if name not in inner)
        yield from (x.name for x in body.output if x.name not in inner)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _operator(node: onnx.NodeProto, weights: Mapping[str, int]) -> Operator:
    read = tuple(dict.fromkeys(reads(node)))
    return Operator(
        name=node.name,
        op_type=node.op_type,
        inputs=tuple(name for name in read if name not in weights),
        outputs=tuple(name for name in node.output if name),
        weights=tuple(name for name in read if name in weights),
    )


def _bytes_of(weight: onnx.TensorProto) -> int:
    # Some types have no whole number of bytes each; ONNX packs those.
    if weight.HasField("raw_data"):
        return len(weight.raw_data)
    size: int = numpy_helper.to_array(weight).nbytes
    return size


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with unique node names, constants as dense initialisers, and nothing that no output depends on.

    Inputs that only name a weight are no inputs.
    """
    tidy = onnx.ModelProto()
    tidy.CopyFrom(model)
    graph = tidy.graph
    constants = {node.output[0]: value for node in graph.node if (value := _constant(node)) is not None}
    nodes = [node for node in _alive(graph) if not (node.op_type == "Constant" and node.output[0] in constants)]
    graph.initializer.extend(constants.values())
    graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    weights = {x.name for x in graph.initializer}
    inputs = [x for x in graph.input if x.name not in weights]
    _replace(graph.input, inputs)
    _replace(graph.node, nodes)
    for node, name in zip(graph.node, _unique(nodes), strict=True):
        node.name = name
    return tidy


def _alive(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    wanted = {x.name for x in graph.output}
    found = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    name = node.output[0]
    match attribute.name:
        case "value":
            weight = onnx.TensorProto()
            weight.CopyFrom(value)
            weight.name = name
            return weight
        case "value_float" | "value_floats":
            return numpy_helper.from_array(np.array(value, np.float32), name)
        case "value_int" | "value_ints":
            return numpy_helper.from_array(np.array(value, np.int64), name)
        case _:
            return None


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A weight of which only what is not zero is written."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _unique(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    taken: dict[str, int] = {}
    names = []
    given = {node.name for node in nodes}
    for node in nodes:
        base = name = node.name or node.op_type
        while name in taken or (name != node.name and name in given):
            taken[base] = taken.get(base, 0) + 1
            name = f"{base}_{taken[base]}"
        taken.setdefault(name, 0)
        names.append(name)
    return names


def _replace(field: Any, values: Iterable[object]) -> None:
    """Give a repeated field other values; its class is one that protobuf makes at run time."""
    kept = list(values)
    del field[:]
    field.extend(kept)
