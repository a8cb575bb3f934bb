"""Any ONNX graph as operators with shapes, bytes and weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.graph import parse


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str], **weights: object
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_shapes_bytes_and_neighbours() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="left"),
        helper.make_node("Neg", ["a"], ["c"], name="right"),
        helper.make_node("Concat", ["b", "c"], ["y"], name="join", axis=1),
    ]
    graph = parse(model_of(nodes, {"x": ["rows", 3]}, ["y"], w=np.zeros((3, 5), np.float32)), {"x": (4, 3)})
    assert [x.name for x in graph.operators] == ["first", "left", "right", "join"]
    assert {name: (x.shape, x.bytes) for name, x in graph.tensors.items()} == {
        "x": ((4, 3), 48),
        "a": ((4, 5), 80),
        "b": ((4, 5), 80),
        "c": ((4, 5), 80),
        "y": ((4, 10), 160),
    }
    assert graph.weights == {"w": 60}
    assert graph.successors["first"] == ("left", "right")
    assert graph.predecessors["join"] == ("left", "right")
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))


def test_a_shared_weight_is_one_weight() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    graph = parse(model_of(nodes, {"x": [2, 3]}, ["y"], w=np.zeros((3, 3), np.float32)), {"x": (2, 3)})
    assert graph.weights == {"w": 36}
    assert [x.weights for x in graph.operators] == [("w",), ("w",)]


def test_constants_are_weights_and_names_are_unique() -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["b"], name="Mul"),
        helper.make_node("Mul", ["b", "two"], ["y"], name="Mul"),
    ]
    graph = parse(model_of(nodes, {"x": [2]}, ["y"]), {"x": (2,)})
    assert len({x.name for x in graph.operators}) == 3
    assert all(x.weights == ("two",) for x in graph.operators)
    assert [x.name for x in graph.operators] == [node.name for node in graph.model.graph.node]


def test_what_no_output_needs_is_gone() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["unread"]),
    ]
    graph = parse(model_of(nodes, {"x": [2, 2]}, ["y"], w=np.zeros((2, 2), np.float32)), {"x": (2, 2)})
    assert [x.op_type for x in graph.operators] == ["Relu"]
    assert graph.weights == {}


def test_control_flow_is_one_operator_that_reads_what_its_branches_read() -> None:
    then = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["inner"]), helper.make_node("Add", ["inner", "x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", 1, None)],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="before"),
        helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="compare"),
        helper.make_node("If", ["positive"], ["y"], name="branch", then_branch=then, else_branch=other),
    ]
    weights = {"w": np.ones((2, 2), np.float32), "zero": np.float32(0)}
    graph = parse(model_of(nodes, {"x": [2, 2]}, ["y"], **weights), {"x": (2, 2)})
    branch = graph.by_name["branch"]
    assert branch.inputs == ("positive", "a", "x")
    assert branch.weights == ("w",)
    assert set(graph.predecessors["branch"]) == {"compare", "before"}


def test_shapes_that_inference_cannot_tell_come_from_a_run() -> None:
    """The shape of a reshape by a computed shape is known only once that is computed."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ReduceProd", ["s"], ["n"], keepdims=1),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["f"], ["r"]),
        helper.make_node("Cast", ["r"], ["side"], to=TensorProto.INT64),
        helper.make_node("Concat", ["side", "side"], ["square"], axis=0),
        helper.make_node("Reshape", ["x", "square"], ["y"]),
    ]
    graph = parse(model_of(nodes, {"x": ["rows", 9]}, ["y"]), {"x": (4, 9)})
    assert graph.tensors["y"].shape == (6, 6)


@pytest.mark.parametrize(("width", "columns"), [(3, 5), (4, 6)])
def test_the_branch_that_fits_the_shapes_tells_them(width: int, columns: int) -> None:
    """Each branch multiplies by a matrix of its own height, and the input `kind` says which of them is meant."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Equal", ["kind", "seven"], ["chosen"]),
        helper.make_node("If", ["chosen"], ["y"], name="branch", **branches),
    ]
    weights = {"then": np.ones((3, 5), np.float32), "else": np.ones((4, 6), np.float32), "seven": np.int64(7)}
    model = model_of(nodes, {"x": ["rows", "width"]}, ["y"], **weights)
    model.graph.input.append(helper.make_tensor_value_info("kind", TensorProto.INT64, []))
    graph = parse(model, {"x": (2, width), "kind": ()})
    assert graph.tensors["y"].shape == (2, columns)
    assert graph.by_name["branch"].weights == ("else", "then")


def test_an_input_without_a_shape_is_named() -> None:
    model = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [2], "z": [2]}, ["y"])
    with pytest.raises(ModelInvalidError, match="input z"):
        parse(model, {"x": (2,)})


def test_shapes_that_contradict_the_model() -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 3]}, ["y"], w=np.zeros((3, 3), np.float32)
    )
    with pytest.raises(ModelInvalidError):
        parse(model, {"x": (2, 4)})
