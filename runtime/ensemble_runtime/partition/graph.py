"""An ONNX model as a graph of operators: who reads what from whom, how large it is, and which weights it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import onnx
from onnx import numpy_helper

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.shapes import shapes_of, whole, without_weights

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

    light: onnx.ModelProto
    """The model without its large weights, each node with the name of its operator; constants are initialisers."""
    large: Mapping[str, onnx.TensorProto]
    """Those weights: the same ones in all graphs that are one model, opened in one way or the other."""
    operators: tuple[Operator, ...]
    tensors: Mapping[str, Tensor]
    """Inputs and what operators put out."""
    weights: Mapping[str, int]
    """Bytes of each initialiser, whoever reads it."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: dict[str, onnx.TensorProto] = field(default_factory=dict, compare=False, repr=False)
    """Of its weights, as they are made when it is opened: the same in every way of opening it."""

    @property
    def model(self) -> onnx.ModelProto:
        """The whole model, its weights copied."""
        return whole(self.light, self.large)

    def weight(self, name: str) -> onnx.TensorProto:
        """An initialiser; not a copy of it."""
        return self.large.get(name) or self._small[name]

    @cached_property
    def _small(self) -> Mapping[str, onnx.TensorProto]:
        return {x.name: x for x in self.light.graph.initializer}

    @cached_property
    def by_name(self) -> Mapping[str, Operator]:
        """The operators by name."""
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def nodes(self) -> Mapping[str, onnx.NodeProto]:
        """The model's nodes by the name of their operator."""
        return {node.name: node for node in self.light.graph.node}

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


def parse(model: onnx.ModelProto, shapes: Shapes, weights: Iterable[onnx.TensorProto] = ()) -> Graph:
    """Read a model, whose weights are not copied.

    Shapes come from ONNX's inference; where that finds none, from running the model once on zeros.

    Args:
        model: Any ONNX model whose weights are inside it.
        shapes: The shape of each input, the batch included.
        weights: Further ones.

    Raises:
        ModelInvalidError: the model is no valid ONNX, an input has no shape here, or a value between operators is not
            a tensor, or an output is a constant.
    """
    light, large, sizes = _tidied(model, weights)
    if constant := [x.name for x in light.graph.output if x.name in sizes]:
        raise ModelInvalidError(f"cannot be partitioned: output '{constant[0]}' is a constant")
    missing = [x.name for x in light.graph.input if x.name not in shapes]
    if missing:
        raise ModelInvalidError(f"no shape is given for input {', '.join(missing)}")
    found = shapes_of(light, shapes, large)
    operators = tuple(_operator(node, sizes) for node in light.graph.node)
    inputs = tuple(x.name for x in light.graph.input)
    names = [*inputs, *(output for operator in operators for output in operator.outputs)]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ModelInvalidError(f"cannot be partitioned: {unknown[0]} is no tensor of a known shape")
    return Graph(
        light=light,
        large=large,
        operators=operators,
        tensors={name: Tensor(name, found[name].datatype, found[name].shape) for name in names},
        weights={name: size for name, size in sizes.items() if any(name in x.weights for x in operators)},
        inputs=inputs,
        outputs=tuple(x.name for x in light.graph.output),
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


def _tidied(
    model: onnx.ModelProto, further: Iterable[onnx.TensorProto]
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto], dict[str, int]]:
    """The model with unique node names, and nothing that no output depends on; its large weights; bytes of all.

    Constants are dense initialisers. Inputs that only name a weight are no inputs.
    """
    graph = model.graph
    constants = {node.output[0]: value for node in graph.node if (value := _constant(node)) is not None}
    dense = map(_dense, graph.sparse_initializer)
    weights = {x.name: x for x in chain(graph.initializer, constants.values(), dense, further)}
    nodes = [node for node in _alive(graph) if not (node.op_type == "Constant" and node.output[0] in constants)]
    light, large = without_weights(model, nodes, weights)
    for node, name in zip(light.graph.node, _unique(nodes), strict=True):
        node.name = name
    return light, large, {name: _bytes_of(x) for name, x in weights.items()}


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
