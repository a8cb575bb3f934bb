"""Opened recurrent nodes give the numbers of the node that they come from, whatever its options."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.partition.graph import parse
from ensemble_runtime.partition.opening import opened, openings, overlapping

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FEATURES, HIDDEN = 3, 4


@dataclass(frozen=True)
class Case:
    """A recurrent node and all that may be said about it."""

    kind: str
    direction: str
    steps: int
    rows: int
    chunk: int
    bias: bool
    lengths: bool
    states: bool
    peepholes: bool
    outputs: tuple[bool, bool, bool]
    clip: bool
    before_reset: bool
    activations: bool
    seed: int
    opset: int = 17


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(sorted(GATES)))
    steps = draw(st.integers(1, 9))
    outputs = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(lambda x: x[0] or x[1]))
    return Case(
        kind=kind,
        direction=draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        steps=steps,
        rows=draw(st.integers(1, 4)),
        chunk=draw(st.integers(0, steps)),
        bias=draw(st.booleans()),
        lengths=draw(st.booleans()),
        states=draw(st.booleans()),
        peepholes=draw(st.booleans()),
        outputs=outputs,
        clip=draw(st.booleans()),
        before_reset=draw(st.booleans()),
        activations=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        opset=draw(st.sampled_from([7, 8, 9, 11, 12, 13, 17])),
    )


def node_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of this one node, and inputs for it."""
    random = np.random.default_rng(case.seed)
    sides, gates = 2 if case.direction == "bidirectional" else 1, GATES[case.kind]

    def values(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    weights = {"W": values(sides, gates * HIDDEN, FEATURES), "R": values(sides, gates * HIDDEN, HIDDEN)}
    feeds = {"x": values(case.steps, case.rows, FEATURES)}
    inputs = ["x", "W", "R", "", "", ""]
    if case.bias:
        weights["B"] = values(sides, 2 * gates * HIDDEN)
        inputs[3] = "B"
    if case.lengths:
        feeds["lengths"] = random.integers(0, case.steps + 1, case.rows).astype(np.int32)
        inputs[4] = "lengths"
    if case.states:
        feeds["h"] = values(sides, case.rows, HIDDEN)
        inputs[5] = "h"
    if case.kind == "LSTM":
        inputs.append("c" if case.states else "")
        if case.states:
            feeds["c"] = values(sides, case.rows, HIDDEN)
        if case.peepholes:
            weights["P"] = values(sides, 3 * HIDDEN)
            inputs.append("P")
    names = ["Y", "Y_h", "Y_c"][: 3 if case.kind == "LSTM" else 2]
    outputs = [name if wanted else "" for name, wanted in zip(names, case.outputs, strict=False)]
    attributes: dict[str, object] = {"hidden_size": HIDDEN, "direction": case.direction}
    if case.clip:
        attributes["clip"] = 0.7
    if case.kind == "GRU" and case.before_reset:
        attributes["linear_before_reset"] = 1
    if case.activations:
        one = {"LSTM": ["HardSigmoid", "Tanh", "Tanh"], "GRU": ["HardSigmoid", "Tanh"], "RNN": ["Relu"]}[case.kind]
        attributes["activations"] = one * sides
        if case.kind != "RNN":
            attributes |= {"activation_alpha": [0.3, 0.1][:sides], "activation_beta": [0.4, 0.6][:sides]}
    graph = helper.make_graph(
        [helper.make_node(case.kind, inputs, outputs, name="node", **attributes)],
        "one",
        [helper.make_tensor_value_info(x, helper.np_dtype_to_tensor_dtype(y.dtype), y.shape) for x, y in feeds.items()],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in outputs if x],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8), feeds


def answers(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_opened_nodes_give_the_same_numbers(case: Case) -> None:
    model, feeds = node_of(case)
    graph = parse(model, {name: value.shape for name, value in feeds.items()})
    if case.opset >= 9:  # before, what has to be written beside it may not be in the opset
        assert openings(graph) == {"node": case.steps}
    changed = opened(graph, {"node": case.chunk})
    for expected, found in zip(answers(model, feeds), answers(changed.model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_chunks_share_the_weights_of_their_layer() -> None:
    case = Case("LSTM", "forward", 9, 2, 2, True, False, False, False, (True, True, True), False, False, False, 1)
    model, feeds = node_of(case)
    graph = parse(model, {"x": feeds["x"].shape})
    chunks = [x for x in opened(graph, {"node": 2}).operators if x.op_type == "LSTM"]
    assert len(chunks) == 5
    assert {x.weights for x in chunks} == {("W", "R", "B")}


def test_directions_divide_the_weights() -> None:
    case = Case("GRU", "bidirectional", 5, 2, 0, True, False, False, False, (True, True, True), False, False, False, 1)
    model, feeds = node_of(case)
    graph = parse(model, {"x": feeds["x"].shape})
    changed = opened(graph, {"node": 0})
    forward, reverse = (x for x in changed.operators if x.op_type == "GRU")
    assert not set(forward.weights) & set(reverse.weights)
    assert sum(changed.weights[x] for x in (*forward.weights, *reverse.weights)) == sum(graph.weights.values())


def test_layers_overlap_through_what_lies_between_them() -> None:
    """A chunk of the second layer depends on the chunks of the first up to its own, and on no later one."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), f"{name}{i}")
        for i in (0, 1)
        for name, shape in (("W", (1, 16, 4)), ("R", (1, 16, 4)), ("B", (1, 32)))
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W0", "R0", "B0"], ["y0"], name="first", hidden_size=4),
        helper.make_node("Squeeze", ["y0", "one"], ["s0"]),
        helper.make_node("Transpose", ["s0"], ["b0"], perm=[1, 0, 2]),
        helper.make_node("LayerNormalization", ["b0", "scale"], ["n0"], axis=-1),
        helper.make_node("Mul", ["n0", "scale"], ["m0"]),
        helper.make_node("MatMul", ["m0", "dense"], ["d0"]),
        helper.make_node("Transpose", ["d0"], ["t1"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t1", "W1", "R1", "B1"], ["y1"], name="second", hidden_size=4),
        helper.make_node("Squeeze", ["y1", "one"], ["y"]),
    ]
    weights += [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(random.normal(size=4).astype(np.float32), "scale"),
        numpy_helper.from_array(random.normal(size=(4, 4)).astype(np.float32), "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 12, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    parsed = parse(model, {"x": (3, 12, 4)})
    changed = opened(parsed, overlapping(parsed, 4))
    before: dict[str, set[str]] = {}
    for operator in changed.operators:
        near = changed.predecessors[operator.name]
        before[operator.name] = set(near).union(*(before[x] for x in near))
    for k in range(3):
        assert {x for x in before[f"second/{k}"] if x in {"first/0", "first/1", "first/2"}} == {
            f"first/{j}" for j in range(k + 1)
        }
    feeds = {"x": random.normal(size=(3, 12, 4)).astype(np.float32)}
    np.testing.assert_allclose(answers(changed.model, feeds)[0], answers(model, feeds)[0], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_opened_stays_whole() -> None:
    """Weights that are computed may differ from batch to batch."""
    nodes = [
        helper.make_node("Mul", ["W", "factor"], ["scaled"]),
        helper.make_node("RNN", ["x", "scaled", "R"], ["y"], name="node", hidden_size=4),
    ]
    graph = helper.make_graph(
        nodes,
        "computed",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 3]),
            helper.make_tensor_value_info("factor", 1, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((1, 4, n), np.float32), name) for name, n in (("W", 3), ("R", 4))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    parsed = parse(model, {"x": (5, 2, 3), "factor": ()})
    assert openings(parsed) == {}
    assert [x.op_type for x in opened(parsed, {"node": 2}).operators] == ["Mul", "RNN"]


@pytest.mark.parametrize("chunk", [0, 2])
def test_rows_first(chunk: int) -> None:
    """ONNX Runtime does not compute `layout=1` at all; opened, it is what `layout=0` gives on turned tensors."""
    case = Case("LSTM", "bidirectional", 5, 3, 0, True, False, True, False, (True, True, True), False, False, False, 7)
    model, feeds = node_of(case)
    expected = answers(model, feeds)
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    turned.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    given_rows = {name: np.ascontiguousarray(value.swapaxes(0, 1)) for name, value in feeds.items()}
    for value in turned.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, given_rows[value.name].shape))
    changed = opened(parse(turned, {name: x.shape for name, x in given_rows.items()}), {"node": chunk})
    y, h, c = answers(changed.model, given_rows)
    np.testing.assert_allclose(y, expected[0].transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h, expected[1].swapaxes(0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c, expected[2].swapaxes(0, 1), rtol=1e-5, atol=1e-6)
