"""Recurrent ONNX models of several shapes: all but one untrained, since only their cost matters, and always the same.

All take rows first, x of (rows, steps, features), and any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CLASSES = 8


@dataclass(frozen=True)
class Recurrent:
    """A model, and what makes it large or small."""

    name: str
    build: Callable[[], onnx.ModelProto]
    hidden: int
    layers: int
    steps: int
    rows: int = 1
    parallel: int = 1
    """Layers, directions or branches that two devices can share."""
    features: int | None = None
    """Of the input; None: as many as hidden units."""
    output: tuple[int, ...] = (CLASSES,)
    """Shape of y without its rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input x."""
        return (self.rows, self.steps, self.features or self.hidden)


class Builder:
    """Collects nodes and weights; every tensor has a name of its own."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        scale = shape[-1] ** -0.5
        return self.constant(self._random.normal(size=shape, scale=scale).astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, *inputs: str, count: int = 1, **attributes: object) -> list[str]:
        index = len(self._nodes)
        outputs = [f"t{index}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind.lower()}{index}", **attributes))
        return outputs

    def recurrent(
        self, kind: str, x: str, features: int, hidden: int, *, states: tuple[str, ...] = (), both: bool = False
    ) -> list[str]:
        """One layer over (steps, rows, features); returns Y as (steps, rows, width), and the last states."""
        sides, gates = 2 if both else 1, GATES[kind]
        weights = [
            self.weight(sides, gates * hidden, features),
            self.weight(sides, gates * hidden, hidden),
            self.weight(sides, 2 * gates * hidden),
        ]
        attributes: dict[str, object] = {"hidden_size": hidden, "direction": "bidirectional" if both else "forward"}
        if kind == "GRU":
            attributes["linear_before_reset"] = 1
        count = 3 if kind == "LSTM" else 2
        y, *last = self.node(kind, x, *weights, *(("", *states) if states else ()), count=count, **attributes)
        if not both:
            return [self.node("Squeeze", y, self.constant(np.array([1])))[0], *last]
        (turned,) = self.node("Transpose", y, perm=[0, 2, 1, 3])
        return [self.node("Reshape", turned, self.constant(np.array([0, 0, -1])))[0], *last]

    def time_first(self, x: str) -> str:
        return self.node("Transpose", x, perm=[1, 0, 2])[0]

    def model(self, inputs: dict[str, tuple[int | str, ...]], output: str, width: int) -> onnx.ModelProto:
        """The model; `output` is (steps, rows, width), of which the last step is classified."""
        (last,) = self.node("Gather", output, self.constant(np.array(-1)), axis=0)
        (y,) = self.node("MatMul", last, self.weight(width, CLASSES))
        self._nodes[-1].output[0] = "y"
        assert y != "y"
        graph = helper.make_graph(
            self._nodes,
            "recurrent",
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x, shape in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", CLASSES])],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stacked(kind: str, hidden: int, layers: int, steps: int, *, both: bool = False) -> onnx.ModelProto:
    """Layers over each other, in one or in both directions."""
    builder = Builder(hidden + layers)
    x, features = builder.time_first("x"), hidden
    for _ in range(layers):
        x = builder.recurrent(kind, x, features, hidden, both=both)[0]
        features = 2 * hidden if both else hidden
    return builder.model({"x": ("rows", steps, hidden)}, x, features)


def encoder_decoder(kind: str, hidden: int, layers: int, steps: int) -> onnx.ModelProto:
    """A stack whose last states begin those of a second stack, which reads the same rows again."""
    builder = Builder(hidden + layers)
    first = x = builder.time_first("x")
    states = []
    for _ in range(layers):
        x, *last = builder.recurrent(kind, x, hidden, hidden)
        states.append(tuple(last))
    x = first
    for begin in states:
        x = builder.recurrent(kind, x, hidden, hidden, states=begin)[0]
    return builder.model({"x": ("rows", steps, hidden)}, x, hidden)


def branches(kind: str, hidden: int, count: int, steps: int) -> onnx.ModelProto:
    """Several layers beside each other over the same rows."""
    builder = Builder(hidden + count)
    x = builder.time_first("x")
    ends = [builder.recurrent(kind, x, hidden, hidden)[0] for _ in range(count)]
    (joined,) = builder.node("Concat", *ends, axis=2)
    return builder.model({"x": ("rows", steps, hidden)}, joined, count * hidden)


def silero_vad(steps: int) -> onnx.ModelProto:
    """The speech detector that the PyPI package `silero-vad` carries, over a whole recording: one row, no state before.

    Convolutions over each of the steps, 32 ms of sound and what comes before it, then an LSTM of 128 units.
    """
    file = distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k_sequence.onnx")
    model = onnx.load(str(file))
    graph = model.graph
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ("rows", steps, 576)))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ("rows", steps)))
    graph.initializer.extend(numpy_helper.from_array(np.zeros((1, 1, 128), np.float32), state) for state in "hc")
    shapes = {"input": (steps, 576), "y": (1, steps)}
    for name, shape in shapes.items():
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}/shape"))
    graph.node.insert(0, helper.make_node("Reshape", ["x", "input/shape"], ["input"], name="row"))
    graph.node.append(helper.make_node("Reshape", ["speech_probs", "y/shape"], ["y"], name="probabilities"))
    return model


def models() -> list[Recurrent]:
    """The list that the benchmarks go through."""
    return [*stacks(), *wide()]


def stacks() -> list[Recurrent]:
    """Layers over each other, in one direction."""
    found = []
    for kind, hidden, layers, steps, rows in (
        ("LSTM", 64, 2, 64, 1),
        ("LSTM", 256, 1, 64, 1),
        ("LSTM", 256, 2, 16, 1),
        ("LSTM", 256, 2, 64, 1),
        ("LSTM", 256, 2, 64, 8),
        ("LSTM", 256, 4, 64, 1),
        ("LSTM", 256, 8, 64, 1),
        ("LSTM", 512, 2, 64, 1),
        ("LSTM", 512, 4, 64, 8),
        ("LSTM", 256, 2, 256, 1),
        ("LSTM", 1024, 2, 64, 1),
        ("GRU", 256, 2, 64, 1),
        ("GRU", 512, 4, 64, 1),
    ):
        build = partial(stacked, kind, hidden, layers, steps)
        found.append(Recurrent(f"{kind} {hidden}, {layers} layers", build, hidden, layers, steps, rows, layers))
    return found


def wide() -> list[Recurrent]:
    """Models that have something side by side."""
    found = []
    for kind, hidden, layers, steps in (
        ("LSTM", 64, 1, 64),
        ("LSTM", 256, 1, 64),
        ("LSTM", 256, 2, 64),
        ("LSTM", 512, 2, 64),
        ("LSTM", 1024, 1, 64),
        ("GRU", 256, 2, 64),
        ("GRU", 512, 2, 64),
    ):
        build = partial(stacked, kind, hidden, layers, steps, both=True)
        name = f"{kind} {hidden}, {layers} layers, both directions"
        found.append(Recurrent(name, build, hidden, layers, steps, 1, 2 * layers))
    for kind, hidden, layers, steps in (("LSTM", 256, 2, 64), ("GRU", 512, 2, 64)):
        build = partial(encoder_decoder, kind, hidden, layers, steps)
        name = f"{kind} {hidden}, encoder and decoder of {layers}"
        found.append(Recurrent(name, build, hidden, layers, steps, 1, 2 * layers))
    for kind, hidden, count, steps in (("LSTM", 256, 4, 64), ("GRU", 256, 3, 64)):
        build = partial(branches, kind, hidden, count, steps)
        found.append(Recurrent(f"{kind} {hidden}, {count} branches", build, hidden, count, steps))
    build = partial(silero_vad, 64)
    found.append(Recurrent("silero-vad, 2 s of sound", build, 128, 1, 64, features=576, output=(64,)))
    return found
