"""Trained nets written out as ONNX graphs, node by node: `image` (rows, 64) in, `probabilities` (rows, 10) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from nets import BRIGHTEST, CLASSES, SIDE, Perceptron, RowReader
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Weights = Mapping[str, NDArray[np.generic]]

# Old enough for every ONNX Runtime that the project accepts.
OPSET = 17
IR_VERSION = 8


def perceptron(net: Perceptron) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Div", ["image", "brightest"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "hidden_weight", "hidden_bias"], ["hidden"], transB=1),
        helper.make_node("Tanh", ["hidden"], ["features"]),
        *_head(),
    ]
    return _model("perceptron", nodes, _linear("hidden", net.hidden) | _linear("head", net.head))


def row_reader(net: RowReader) -> onnx.ModelProto:
    """A GRU node reads (steps, rows, pixels); its last state goes to the head."""
    nodes = [
        helper.make_node("Div", ["image", "brightest"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "picture_shape"], ["picture"]),
        helper.make_node("Transpose", ["picture"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["steps", "gru_input", "gru_recurrent", "gru_bias"],
            ["", "last"],
            hidden_size=net.gru.hidden_size,
            linear_before_reset=1,  # as torch: the reset gate acts on the recurrent product, bias included
        ),
        helper.make_node("Squeeze", ["last", "directions"], ["features"]),
        *_head(),
    ]
    biases = [_reordered(net.gru.bias_ih_l0), _reordered(net.gru.bias_hh_l0)]
    weights: Weights = {
        "picture_shape": np.array([-1, SIDE, SIDE], np.int64),
        "directions": np.array([0], np.int64),
        "gru_input": _reordered(net.gru.weight_ih_l0)[np.newaxis],
        "gru_recurrent": _reordered(net.gru.weight_hh_l0)[np.newaxis],
        "gru_bias": np.concatenate(biases)[np.newaxis],
    }
    return _model("row-reader", nodes, {**weights, **_linear("head", net.head)})


def _reordered(gates: Tensor) -> NDArray[np.float32]:
    """From torch's order of the gates (reset, update, new) to ONNX's (update, reset, new)."""
    reset, update, new = np.split(gates.detach().numpy(), 3)
    return np.concatenate([update, reset, new])


def _head() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gemm", ["features", "head_weight", "head_bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]


def _linear(name: str, layer: object) -> dict[str, NDArray[np.generic]]:
    return {f"{name}_{part}": getattr(layer, part).detach().numpy() for part in ("weight", "bias")}


def _model(name: str, nodes: Sequence[onnx.NodeProto], weights: Weights) -> onnx.ModelProto:
    constants = {"brightest": np.array(BRIGHTEST, np.float32), **weights}
    graph = helper.make_graph(
        nodes,
        name,
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", SIDE * SIDE])],
        outputs=[helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", CLASSES])],
        initializer=[numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
