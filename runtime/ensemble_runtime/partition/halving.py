"""An LSTM opened by gates: each device computes half of the units, and the two exchange their halves at every step.

One device reads only half of the recurrent weights, which may then stay in its caches where all of them do not. That is
worth a hand-over at every step only where the weights are many.

Half of a step is one operator, a function that the model carries: ONNX Runtime writes it out as it loads it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.recurrence import Recurrence, Written, join_sides, openable, time_first
from ensemble_runtime.partition.rewriting import Rewriting

LEAST_BYTES = 4 * 2**20
"""Of the recurrent weights of one direction; with fewer, a step is over before its halves are exchanged."""
MOST_STEPS = 1024
"""Of all layers and directions together; each becomes two operators."""
_DOMAIN = "ensembles.partition"
_OPSET = 13
"""Since when splits and squeezes take sizes and axes as inputs."""
_PLAIN = {"direction", "hidden_size", "layout", "activations"}
_HALVES = ("half0", "half1")


def halved(graph: Graph) -> tuple[Graph, Placement] | None:
    """The graph with its large LSTMs by gates, and who computes what; None if it has none, or too many time steps."""
    rewriting = Rewriting(graph)
    layers = {node.name: Recurrence(node) for node in graph.light.graph.node if _worthwhile(rewriting, node)}
    steps = sum(_steps(graph, layer) * len(layer.directions) for layer in layers.values())
    if not layers or steps > MOST_STEPS or rewriting.opset < _OPSET:
        return None
    for node in graph.light.graph.node:
        for name in graph.by_name[node.name].inputs:
            rewriting.whole(name)
        if node.name in layers:
            _halve(rewriting, layers[node.name])
        else:
            rewriting.copy(node)
    halves = sorted({_units(layer) for layer in layers.values()})
    changed = rewriting.graph_of(_step(units, rewriting.opset) for units in halves)
    second = f"/{_HALVES[1]}"
    return changed, Placement({x.name: int(second in x.name) for x in changed.operators})


def _worthwhile(rewriting: Rewriting, node: onnx.NodeProto) -> bool:
    """Whether a node is an LSTM without anything unusual, large enough, and with an even number of units."""
    layer = Recurrence(node)
    if node.op_type != "LSTM" or node.domain not in ("", "ai.onnx"):
        return False
    if not openable(layer, set(rewriting.graph.weights), rewriting.opset) or layer.input(4) or layer.input(7):
        return False
    usual = layer.attributes.get("activations", []) in ([], ["Sigmoid", "Tanh", "Tanh"] * len(layer.directions))
    name = layer.input(2)
    large = rewriting.graph.weights[name] >= LEAST_BYTES * len(layer.directions) and not rewriting.sizes(name)[2] % 2
    return large and usual and set(layer.attributes) <= _PLAIN


def _steps(graph: Graph, layer: Recurrence) -> int:
    return graph.tensors[layer.input(0)].shape[1 if layer.batch_first else 0]


def _units(layer: Recurrence) -> int:
    """Of one half."""
    hidden = layer.attributes["hidden_size"]
    assert isinstance(hidden, int)
    return hidden // 2


def _halve(rewriting: Rewriting, layer: Recurrence) -> None:
    x, steps = time_first(rewriting, layer), _steps(rewriting.graph, layer)
    sides = [_Side(rewriting, layer, side).write(x, steps) for side in range(len(layer.directions))]
    join_sides(rewriting, layer, sides, (0, steps))


class _Side:
    """One direction of an LSTM."""

    def __init__(self, rewriting: Rewriting, layer: Recurrence, side: int) -> None:
        self._to = rewriting
        self._of = layer
        self._side = side
        self._reverse = layer.directions[side] == "reverse"
        self._units = _units(layer)
        self._name = f"{layer.node.name}/{layer.directions[side]}"

    def write(self, x: str, steps: int) -> Written:
        """Write each step as two halves.

        Args:
            x: The input, (steps, rows, features).
            steps: Its length.
        """
        gates = [self._input_part(x, half, steps) for half in (0, 1)]
        recurrent = [self._share(2, half, "R") for half in (0, 1)]
        shape = "" if all(self._of.states) else self._state_shape(x)
        h, c = (self._initial(state, shape) for state in (0, 1))
        states: list[str] = []  # h after each step, as they come
        for t in range(steps - 1, -1, -1) if self._reverse else range(steps):
            after: tuple[list[str], list[str]] = ([], [])
            for half in (0, 1):
                name = f"{self._name}/{t}/{_HALVES[half]}"
                inputs = [*h, c[half], gates[half][t], recurrent[half]]
                outputs = [f"{name}/h", f"{name}/c", f"{name}/before"]
                self._to.add(_function(self._units), inputs, outputs, name, domain=_DOMAIN)
                after[0].append(outputs[0])
                after[1].append(outputs[1])
                if half == 0:
                    states.append(outputs[2])
            h, c = after
        last = [self._joined(f"{self._name}/{state}", parts) for state, parts in (("h", h), ("c", c))]
        states = [*states[1:], last[0]]
        return Written((self._all(states[::-1] if self._reverse else states),), tuple(map(self._row_of_states, last)))

    def _input_part(self, x: str, half: int, steps: int) -> list[str]:
        """What the input adds to a half's gates, for each step (rows, 4 x units)."""
        name = f"{self._name}/x/{_HALVES[half]}"
        (found,) = self._to.add("MatMul", [x, self._share(1, half, "W")], [f"{name}/W"], f"{name}/W")
        if self._of.input(3):
            (found,) = self._to.add("Add", [found, self._bias(half)], [name], name)
        pieces = self._to.cut(found, 0, tuple(range(steps + 1))).names
        axes = self._to.weight("partition/axis0", np.array([0], np.int64))
        return [self._to.add("Squeeze", [piece, axes], [f"{piece}/row"], f"{piece}/row")[0] for piece in pieces]

    def _share(self, index: int, half: int, name: str) -> str:
        """A half's rows of W or R, turned: (features or units of both halves, 4 x units)."""
        value = self._to.value(self._of.input(index))
        assert value is not None
        rows = value[self._side].reshape(4, 2, self._units, -1)[:, half]
        turned = np.ascontiguousarray(rows.reshape(4 * self._units, -1).T)
        return self._to.weight(f"{self._name}/{name}/{_HALVES[half]}", turned)

    def _bias(self, half: int) -> str:
        value = self._to.value(self._of.input(3))
        assert value is not None
        total = value[self._side].reshape(2, 4, 2, self._units).sum(axis=0)[:, half]
        return self._to.weight(f"{self._name}/B/{_HALVES[half]}", total.reshape(-1))

    def _initial(self, state: int, shape: str) -> list[str]:
        """Both halves of h or c before the first step, each (rows, units)."""
        given = self._of.states[state]
        name = f"{self._name}/initial/{'hc'[state]}"
        halves = [f"{name}/{half}" for half in range(2)]
        if not given:
            zeros = helper.make_tensor("zero", self._elements(), [1], [0.0])
            return [self._to.add("ConstantOfShape", [shape], [half], half, value=zeros)[0] for half in halves]
        if self._of.batch_first:
            (given,) = self._to.add("Transpose", [given], [f"{name}/turn"], f"{name}/turn", perm=[1, 0, 2])
        if len(self._of.directions) > 1:
            given = self._to.cut(given, 0, (0, 1, 2)).names[self._side]
        axes = self._to.weight("partition/axis0", np.array([0], np.int64))
        (rows,) = self._to.add("Squeeze", [given, axes], [f"{name}/rows"], f"{name}/rows")
        sizes = self._to.weight(f"partition/halves/{self._units}", np.array([self._units] * 2, np.int64))
        return list(self._to.add("Split", [rows, sizes], halves, name, axis=1))

    def _state_shape(self, x: str) -> str:
        name = f"{self._name}/shape"
        one = self._to.weight("partition/one", np.array([1], np.int64))
        units = self._to.weight(f"partition/{self._units}", np.array([self._units], np.int64))
        (shape,) = self._to.add("Shape", [x], [f"{name}/x"], f"{name}/x")
        (rows,) = self._to.add("Gather", [shape, one], [f"{name}/rows"], f"{name}/rows")
        return self._to.add("Concat", [rows, units], [name], name, axis=0)[0]

    def _elements(self) -> int:
        datatype = self._to.graph.tensors[self._of.input(0)].datatype
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(datatype)))

    def _joined(self, name: str, halves: list[str]) -> str:
        return self._to.add("Concat", halves, [name], name, axis=1)[0]

    def _row_of_states(self, state: str) -> str:
        """A last state as (1, rows, hidden)."""
        axes = self._to.weight("partition/axis0", np.array([0], np.int64))
        return self._to.add("Unsqueeze", [state, axes], [f"{state}/last"], f"{state}/last")[0]

    def _all(self, states: list[str]) -> str:
        """Y as (steps, 1, rows, hidden)."""
        axes = self._to.weight("partition/axes01", np.array([0, 1], np.int64))
        apart = [self._to.add("Unsqueeze", [x, axes], [f"{x}/Y"], f"{x}/Y")[0] for x in states]
        return self._to.add("Concat", apart, [f"{self._name}/Y"], f"{self._name}/Y", axis=0)[0]


def _function(units: int) -> str:
    return f"HalfStep{units}"


def _step(units: int, opset: int) -> onnx.FunctionProto:
    """Half of a step: from both halves of h before it, the half's c, the input's part of the gates, and R turned."""
    nodes = [
        helper.make_node("Concat", ["first", "second"], ["before"], axis=1),
        helper.make_node("Gemm", ["before", "R", "gates"], ["sums"]),
        helper.make_node("Constant", [], ["sizes"], value_ints=[3 * units, units]),
        helper.make_node("Constant", [], ["thirds"], value_ints=[units] * 3),
        helper.make_node("Split", ["sums", "sizes"], ["to open", "to add"], axis=1),
        helper.make_node("Sigmoid", ["to open"], ["open"]),
        helper.make_node("Tanh", ["to add"], ["new"]),
        helper.make_node("Split", ["open", "thirds"], ["i", "o", "f"], axis=1),
        helper.make_node("Mul", ["f", "c"], ["kept"]),
        helper.make_node("Mul", ["i", "new"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["c after"]),
        helper.make_node("Tanh", ["c after"], ["bent"]),
        helper.make_node("Mul", ["o", "bent"], ["h after"]),
    ]
    inputs, outputs = ["first", "second", "c", "gates", "R"], ["h after", "c after", "before"]
    return helper.make_function(_DOMAIN, _function(units), inputs, outputs, nodes, [helper.make_opsetid("", opset)])
