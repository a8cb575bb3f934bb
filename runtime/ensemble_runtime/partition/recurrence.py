"""One fused LSTM, GRU or RNN node, taken apart by direction and by chunks of time steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import helper

from ensemble_runtime.partition.rewriting import Pieces, Rewriting

_ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
_WITH_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_WITH_BETA = {"affine", "scaledtanh", "hardsigmoid"}
_LENGTHS_OPSET = 12
"""Since when minima and maxima take whole numbers."""
_STATES_OPSET = 9
"""Since when zeros are made in a shape that is computed, and whole numbers compared."""


@dataclass(frozen=True)
class Recurrence:
    """A recurrent node and what it reads, in the order of the ONNX specification."""

    node: onnx.NodeProto

    def input(self, index: int) -> str:
        """The name of an input; empty if it is absent."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def output(self, index: int) -> str:
        """The name of an output; empty if nobody wants it."""
        return self.node.output[index] if index < len(self.node.output) else ""

    @cached_property
    def attributes(self) -> dict[str, object]:
        """The node's attributes by name, strings decoded."""
        found = {x.name: helper.get_attribute_value(x) for x in self.node.attribute}
        if "activations" in found:
            found["activations"] = [x.decode() for x in found["activations"]]
        return found

    @property
    def kind(self) -> str:
        """LSTM, GRU or RNN."""
        return str(self.node.op_type)

    @property
    def directions(self) -> tuple[str, ...]:
        """One or two of ``forward`` and ``reverse``."""
        direction = self.attributes.get("direction", b"forward")
        assert isinstance(direction, bytes)
        return ("forward", "reverse") if direction == b"bidirectional" else (direction.decode(),)

    @property
    def batch_first(self) -> bool:
        """Whether rows come before time steps (`layout=1`)."""
        return self.attributes.get("layout", 0) == 1

    @property
    def states(self) -> tuple[str, ...]:
        """Initial states, empty where absent: h, and c of an LSTM."""
        return (self.input(5), self.input(6)) if self.kind == "LSTM" else (self.input(5),)

    def activations(self, side: int) -> dict[str, object] | None:
        """The attributes about activations of one direction; None if they cannot be told apart."""
        found = {x: y for x in ("activations", "activation_alpha", "activation_beta") if (y := self.attributes.get(x))}
        if len(self.directions) == 1 or not found:
            return found
        names = found.get("activations")
        if not isinstance(names, list) or len(names) != 2 * _ACTIVATIONS[self.kind]:
            return None
        half = len(names) // 2
        share: dict[str, object] = {"activations": names[half * side : half * (side + 1)]}
        for key, takers in (("activation_alpha", _WITH_ALPHA), ("activation_beta", _WITH_BETA)):
            values = found.get(key)
            if values is None:
                continue
            counts = [sum(x.lower() in takers for x in names[half * i : half * (i + 1)]) for i in (0, 1)]
            if not isinstance(values, list) or len(values) != sum(counts):
                return None
            share[key] = values[: counts[0]] if side == 0 else values[counts[0] :]
        return share


def openable(recurrence: Recurrence, weights: set[str], opset: int) -> bool:
    """Whether a node can be taken apart.

    Its weights are constants, its activations belong to one direction each, and the operators that its parts need are
    in the model's opset.
    """
    some, every = any(recurrence.states), all(recurrence.states)
    apart = every and not recurrence.input(4) if some else len(recurrence.directions) > 1 or recurrence.batch_first
    if opset < _STATES_OPSET and not apart:
        return False
    fixed = [recurrence.input(i) for i in (1, 2, 3, *([7] if recurrence.kind == "LSTM" else []))]
    return all(not name or name in weights for name in fixed) and recurrence.activations(0) is not None


def divides(recurrence: Recurrence, steps: int, length: int) -> bool:
    """Whether opening changes a node at all: it has two directions, rows first, or more steps than a chunk."""
    return len(recurrence.directions) > 1 or recurrence.batch_first or 0 < steps < length


@dataclass(frozen=True)
class Cut:
    """Chunks of one node, of any lengths, and whose inputs are multiplied by the weights by operators of their own."""

    bounds: tuple[int, ...]
    """Where chunks begin and end: one more than there are chunks."""
    apart: tuple[range, ...]
    """Chunks of one length each time, for which that is done at once."""


def open_node(rewriting: Rewriting, node: onnx.NodeProto, steps: int, cut: Cut | None = None) -> None:
    """Write a node's directions and chunks, and say where its outputs are.

    Args:
        rewriting: Where to.
        node: A node that is `openable`.
        steps: Time steps of a chunk; 0, or as many as there are, does not cut time.
        cut: Other chunks than of so many steps, of a node of one direction; with one row where some are apart.
    """
    recurrence = Recurrence(node)
    x = time_first(rewriting, recurrence)
    length = rewriting.graph.tensors[recurrence.input(0)].shape[1 if recurrence.batch_first else 0]
    cuts = 0 < steps < length and rewriting.opset >= _opset_of_chunks(recurrence)
    bounds = (*range(0, length, steps), length) if cuts else (0, length)
    cut = cut if cut and cuts else Cut(bounds, ())
    sides = [_Side(rewriting, recurrence, side).write(x, cut) for side in range(len(recurrence.directions))]
    join_sides(rewriting, recurrence, sides, cut.bounds)


def _opset_of_chunks(recurrence: Recurrence) -> int:
    """Since which opset a node can be cut in time."""
    if recurrence.input(4):
        return _LENGTHS_OPSET
    return 1 if all(recurrence.states) else _STATES_OPSET


@dataclass(frozen=True)
class Written:
    """What one direction puts out."""

    chunks: tuple[str, ...]
    """Y of each chunk, in the order of time."""
    states: tuple[str, ...]


class _Side:
    """One direction of a recurrent node."""

    def __init__(self, rewriting: Rewriting, recurrence: Recurrence, side: int) -> None:
        self._to = rewriting
        self._of = recurrence
        self._side = side
        self._direction = recurrence.directions[side]
        self._name = recurrence.node.name + (f"/{self._direction}" if len(recurrence.directions) > 1 else "")
        self._hidden = _hidden(rewriting, recurrence)
        self._made: set[str] = set()
        keep = {k: v for k, v in recurrence.attributes.items() if not k.startswith("activation")}
        keep |= recurrence.activations(side) or {}
        keep |= {"direction": self._direction, "hidden_size": self._hidden}
        keep.pop("layout", None)
        self._attributes = keep

    def write(self, x: str, cut: Cut) -> Written:
        """Write the chunks in the order in which the state passes through them."""
        of, bounds, count = self._of, cut.bounds, len(cut.bounds) - 1
        pieces = self._to.cut(x, 0, bounds) if count > 1 else Pieces(0, (self._to.whole(x),), bounds)
        weights = [self._share(of.input(i)) for i in (1, 2, 3)]
        peepholes = [self._share(of.input(7))] if of.kind == "LSTM" else []
        states = self._initial_states(pieces.names[0]) if count > 1 or any(of.states) else []
        products = {k: y for chunks in cut.apart for k, y in self._products(x, chunks, bounds).items()}
        order = range(count) if self._direction == "forward" else range(count - 1, -1, -1)
        chunks = [""] * count
        for k in order:
            name = f"{self._name}/{k}" if count > 1 else self._name
            lengths = self._lengths(k, bounds, name)
            found = [f"{name}/Y", *(f"{name}/{state}" for state in ("h", "c")[: len(of.states)])]
            given = states or ["" for _ in of.states]
            # What is multiplied by the weights elsewhere is multiplied by 1 here: the products are the weights.
            read = [self._ones(bounds[k + 1] - bounds[k]), products[k]] if k in products else []
            read = [*(read or [pieces.names[k], weights[0]]), *weights[1:], lengths, *given, *peepholes]
            self._to.add(of.kind, read, found, name, **self._attributes)
            chunks[k], states = found[0], self._carried(lengths, states, found[1:], name, count)
        return Written(tuple(chunks), tuple(states))

    def _products(self, x: str, chunks: range, bounds: tuple[int, ...]) -> dict[int, str]:
        """The inputs of some chunks, of one row, times the weights, of each chunk as (1, gates, steps)."""
        to, name = self._to, f"{self._name}/products/{chunks[0]}"
        start, stop = bounds[chunks[0]], bounds[chunks[-1] + 1]
        if len(chunks) == 1:
            part = to.cut(x, 0, bounds).names[chunks[0]]
        else:
            part = to.cut(x, 0, (0, start, stop, bounds[-1])).names[1]
        value = to.value(self._of.input(1))
        assert value is not None, "openable nodes have constant weights"
        weights = to.weight(f"{self._of.input(1)}/turned", np.ascontiguousarray(value[0].T))
        wanted = np.array([len(chunks), -1, value.shape[1]], np.int64)
        shape = to.weight("partition/" + ",".join(map(str, wanted)), wanted)  # alike products are of one session
        (all_rows,) = to.add("MatMul", [part, weights], [f"{name}/rows"], f"{name}/rows")
        (by_chunk,) = to.add("Reshape", [all_rows, shape], [f"{name}/chunks"], f"{name}/chunks")
        (turned,) = to.add("Transpose", [by_chunk], [name], name, perm=[0, 2, 1])
        found = to.cut(turned, 0, tuple(range(len(chunks) + 1))).names if len(chunks) > 1 else (turned,)
        return dict(zip(chunks, found, strict=True))

    def _ones(self, steps: int) -> str:
        """As (steps, 1, steps), a 1 in each row and column; no weight, so that chunks of any length are alike."""
        name = f"{self._name}/ones{steps}"
        if name not in self._made:
            self._made.add(name)
            datatype = self._to.graph.tensors[self._of.input(0)].datatype
            value = np.eye(steps, dtype=datatype).reshape(steps, 1, steps)
            self._to.add("Identity", [self._to.weight(f"{name}/w", value)], [name], name)
        return name

    def _share(self, name: str) -> str:
        """This direction's part of a weight."""
        if not name or len(self._of.directions) == 1:
            return name
        return self._to.part(f"{name}/{self._direction}", name, slice(self._side, self._side + 1))

    def _initial_states(self, x: str) -> list[str]:
        # Zeros are written out, one tensor a state: chunks of one node are alike, the first among them, so that one
        # session computes them all.
        shape = "" if all(self._of.states) else self._state_shape(x)
        return [self._initial(x) if x else self._zeros(shape, i) for i, x in enumerate(self._of.states)]

    def _initial(self, state: str) -> str:
        """This direction's initial state, as (1, rows, hidden)."""
        name = f"{self._name}/from/{state}"
        if self._of.batch_first:
            (state,) = self._to.add("Transpose", [self._to.whole(state)], [f"{name}/t"], f"{name}/t", perm=[1, 0, 2])
        if len(self._of.directions) > 1:
            state = self._to.cut(state, 0, (0, 1, 2)).names[self._side]
        if not self._of.input(4):
            return self._to.whole(state)
        # A row of no steps ends with zeros, whatever it began with.
        some = self._some_steps(self._of.input(4), f"{name}/some")
        (share,) = self._to.add("Cast", [some], [f"{name}/share"], f"{name}/share", to=self._elements())
        return self._to.add("Mul", [self._to.whole(state), share], [name], name)[0]

    def _state_shape(self, x: str) -> str:
        name = f"{self._name}/shape"
        one = self._to.weight("partition/one", np.array([1], np.int64))
        hidden = self._to.weight(f"partition/{self._hidden}", np.array([self._hidden], np.int64))
        (shape,) = self._to.add("Shape", [x], [f"{name}/x"], f"{name}/x")
        (rows,) = self._to.add("Gather", [shape, one], [f"{name}/rows"], f"{name}/rows")
        return self._to.add("Concat", [one, rows, hidden], [name], name, axis=0)[0]

    def _zeros(self, shape: str, state: int) -> str:
        name = f"{self._name}/zeros{state}"
        zero = helper.make_tensor("zero", self._elements(), [1], [0.0])
        return self._to.add("ConstantOfShape", [shape], [name], name, value=zero)[0]

    def _elements(self) -> int:
        datatype = self._to.graph.tensors[self._of.input(0)].datatype
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(datatype)))

    def _lengths(self, k: int, bounds: tuple[int, ...], name: str) -> str:
        """How many steps of each row fall into a chunk."""
        lengths = self._of.input(4)
        if not lengths or len(bounds) == 2:
            return lengths
        start, size = bounds[k], bounds[k + 1] - bounds[k]
        before = self._to.weight(f"partition/int32/{start}", np.array(start, np.int32))
        zero = self._to.weight("partition/int32/0", np.array(0, np.int32))
        most = self._to.weight(f"partition/int32/{size}", np.array(size, np.int32))
        (left,) = self._to.add("Sub", [lengths, before], [f"{name}/left"], f"{name}/left")
        (some,) = self._to.add("Max", [left, zero], [f"{name}/some"], f"{name}/some")
        return self._to.add("Min", [some, most], [f"{name}/lengths"], f"{name}/lengths")[0]

    def _carried(self, lengths: str, before: list[str], after: list[str], name: str, count: int) -> list[str]:
        """The states after a chunk: rows that have no step in it keep theirs (ONNX Runtime answers zeros for them)."""
        if not lengths or count == 1:
            return after
        some = self._some_steps(lengths, f"{name}/any")
        return [
            self._to.add("Where", [some, new, old], [f"{new}/kept"], f"{new}/kept")[0]
            for old, new in zip(before, after, strict=True)
        ]

    def _some_steps(self, lengths: str, name: str) -> str:
        """Which rows have steps, as (1, rows, 1)."""
        zero = self._to.weight("partition/int32/0", np.array(0, np.int32))
        shape = self._to.weight("partition/rows", np.array([1, -1, 1], np.int64))
        (flat,) = self._to.add("Greater", [lengths, zero], [f"{name}/flat"], f"{name}/flat")
        return self._to.add("Reshape", [flat, shape], [name], name)[0]


def time_first(rewriting: Rewriting, recurrence: Recurrence) -> str:
    """The input as (steps, rows, features)."""
    x = recurrence.input(0)
    if not recurrence.batch_first:
        return x
    name = f"{recurrence.node.name}/x"
    pieces = rewriting.pieces.get(x)
    if pieces is not None and pieces.axis == 1:
        turned = tuple(f"{name}/{k}" for k in range(len(pieces.names)))
        for piece, result in zip(pieces.names, turned, strict=True):
            rewriting.add("Transpose", [piece], [result], result, perm=[1, 0, 2])
        rewriting.pieces[name] = Pieces(0, turned, pieces.bounds)
        return name
    return rewriting.add("Transpose", [rewriting.whole(x)], [name], name, perm=[1, 0, 2])[0]


def join_sides(rewriting: Rewriting, recurrence: Recurrence, sides: list[Written], bounds: tuple[int, ...]) -> None:
    """Give the node's outputs their names: Y stays in pieces of time, the states of both directions come together."""
    y, count, turned = recurrence.output(0), len(bounds) - 1, recurrence.batch_first
    if y:
        names = tuple(y if count == 1 else f"{y}/{k}" for k in range(count))
        for k, name in enumerate(names):
            _together(rewriting, [side.chunks[k] for side in sides], name, 1, (2, 0, 1, 3) if turned else ())
        if count > 1:
            rewriting.pieces[y] = Pieces(1 if turned else 0, names, bounds)
    for i in range(len(recurrence.states)):
        if wanted := recurrence.output(1 + i):
            _together(rewriting, [side.states[i] for side in sides], wanted, 0, (1, 0, 2) if turned else ())


def _together(rewriting: Rewriting, parts: list[str], name: str, axis: int, turn: tuple[int, ...]) -> None:
    """Join what the directions put out, in the node's own order of axes."""
    joined = f"{name}/sides" if turn else name
    if len(parts) > 1:
        rewriting.add("Concat", parts, [joined], joined, axis=axis)
    elif turn:
        joined = parts[0]
    else:
        rewriting.add("Identity", parts, [name], f"{name}/name")
    if turn:
        rewriting.add("Transpose", [joined], [name], f"{name}/turn", perm=turn)


def _hidden(rewriting: Rewriting, recurrence: Recurrence) -> int:
    return rewriting.sizes(recurrence.input(2))[2]
