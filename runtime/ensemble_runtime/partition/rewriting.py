"""A model in the course of being rewritten: nodes are added in order, tensors may be in pieces along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ensemble_runtime.partition.graph import Graph, parse, reads

Array = NDArray[Any]


@dataclass(frozen=True)
class Pieces:
    """A tensor that exists as consecutive pieces along one axis."""

    axis: int
    names: tuple[str, ...]
    bounds: tuple[int, ...]
    """Where pieces begin and end: one more than there are pieces."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each piece."""
        return tuple(end - start for start, end in pairwise(self.bounds))


def opset_of(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators."""
    return next((x.version for x in model.opset_import if x.domain in ("", "ai.onnx")), 1)


class Rewriting:
    """The nodes and weights of the model that comes out."""

    def __init__(self, graph: Graph) -> None:
        """Start with the graph's weights and no node."""
        self.graph = graph
        self.opset = opset_of(graph.light)
        self.nodes: list[onnx.NodeProto] = []
        self.pieces: dict[str, Pieces] = {}
        self._joined: set[str] = set()
        self._cuts: dict[str, list[tuple[int, ...]]] = {}
        self._given = {x.name: x for x in (*graph.light.graph.initializer, *graph.large.values())}
        self._made: dict[str, onnx.TensorProto] = {}

    def add(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: object
    ) -> tuple[str, ...]:
        """Add a node; returns its outputs."""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return tuple(outputs)

    def copy(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Add a node that is like another, and return it for changes."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        self.nodes.append(copied)
        return copied

    def weight(self, name: str, value: Array) -> str:
        """Add a weight, unless one of that name was added before."""
        if name not in self._made:
            self._made[name] = numpy_helper.from_array(value, name)
        return name

    def part(self, name: str, of: str, rows: slice) -> str:
        """Add some rows of a weight, which are kept for all rewritings of the graph."""
        parts = self.graph.parts
        if name not in parts:
            value = self.value(of)
            assert value is not None, "a weight"
            parts[name] = numpy_helper.from_array(value[rows], name)
        self._made[name] = parts[name]
        return name

    def sizes(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return tuple((self._given.get(name) or self._made[name]).dims)

    def value(self, name: str) -> Array | None:
        """A weight's elements; None for what is computed."""
        found = self._given.get(name) or self._made.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def whole(self, name: str) -> str:
        """Make sure that a tensor exists in one piece."""
        pieces = self.pieces.get(name)
        if pieces is not None and name not in self._joined:
            self._joined.add(name)
            self.add("Concat", pieces.names, [name], f"{name}/join", axis=pieces.axis)
        return name

    def cut(self, name: str, axis: int, bounds: tuple[int, ...]) -> Pieces:
        """Make sure that a tensor exists in these pieces."""
        found = self.pieces.get(name)
        if found is not None and (found.axis, found.bounds) == (axis, bounds):
            return found
        prefix = f"{name}/cut{axis}x{len(bounds) - 1}"
        alike = self._cuts.setdefault(prefix, [])
        if bounds not in alike:
            alike.append(bounds)
        prefix += f"/{alike.index(bounds)}" if alike[0] != bounds else ""
        pieces = Pieces(axis, tuple(f"{prefix}/{k}" for k in range(len(bounds) - 1)), bounds)
        if pieces.names[0] in self._joined:
            return pieces
        self._joined.add(pieces.names[0])
        sizes = np.array(pieces.sizes, np.int64)
        if self.opset >= 13:
            self.add(
                "Split", [self.whole(name), self.weight(f"{prefix}/sizes", sizes)], pieces.names, prefix, axis=axis
            )
        else:
            self.add("Split", [self.whole(name)], pieces.names, prefix, axis=axis, split=sizes.tolist())
        return pieces

    def graph_of(self, functions: Iterable[onnx.FunctionProto] = ()) -> Graph:
        """The rewritten graph, whose outputs are whole.

        Args:
            functions: That its nodes call beside those of the model.
        """
        given = self.graph.light
        for output in given.graph.output:
            self.whole(output.name)
        read = {name for node in self.nodes for name in reads(node)} | {x.name for x in given.graph.output}
        model = onnx.ModelProto(ir_version=given.ir_version)
        model.opset_import.extend(given.opset_import)
        model.graph.name = given.graph.name
        model.graph.input.extend(given.graph.input)
        model.graph.output.extend(given.graph.output)
        model.graph.node.extend(self.nodes)
        model.functions.extend(given.functions)
        for function in functions:
            model.functions.append(function)
            if function.domain not in {x.domain for x in model.opset_import}:
                model.opset_import.append(helper.make_opsetid(function.domain, 1))
        weights = [x for x in chain(self._given.values(), self._made.values()) if x.name in read]
        return parse(model, {name: self.graph.tensors[name].shape for name in self.graph.inputs}, weights)
