"""What lies between recurrent layers works on chunks of time steps as well as on all of them: here is what, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ensemble_runtime.partition.rewriting import Pieces, Rewriting

_ELEMENTWISE = {
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
    *("Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
}
_BROADCAST = {"Add", "And", "Div", "Max", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Where", "Xor"}
_ALONG_AN_AXIS = {"Softmax": -1, "LogSoftmax": -1, "LayerNormalization": -1, "Hardmax": -1}


def push(rewriting: Rewriting, node: onnx.NodeProto) -> bool:
    """Write a node once for each piece of its input, if it can compute them apart; returns whether it could."""
    pieces = next((found for name in node.input if (found := rewriting.pieces.get(name))), None)
    if pieces is None or node.domain not in ("", "ai.onnx") or any(node.output[1:]):
        return False
    if node.op_type == "Gather":
        return _pick(rewriting, node, pieces)
    axis = _axis_after(rewriting, node, pieces)
    if axis is None:
        return False
    parts = _inputs(rewriting, node, pieces)
    if parts is None:
        return False
    names = tuple(f"{node.output[0]}/{k}" for k in range(len(pieces.names)))
    for k, name in enumerate(names):
        copy = rewriting.copy(node)
        copy.name = f"{node.name}/{k}"
        copy.output[0] = name
        for i, part in enumerate(parts):
            copy.input[i] = part[k]
    rewriting.pieces[node.output[0]] = Pieces(axis, names, pieces.bounds)
    return True


def _inputs(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> list[tuple[str, ...]] | None:
    """For each input its name in each of the copies; None if pieces of several kinds meet."""
    parts = []
    for i, name in enumerate(node.input):
        found = rewriting.pieces.get(name)
        if found is None:
            shape = _new_shape(rewriting, node, pieces) if (node.op_type, i) == ("Reshape", 1) else name
            parts.append((shape,) * len(pieces.names))
        elif found.bounds == pieces.bounds:
            parts.append(found.names)
        else:
            return None
    return parts


def _axis_after(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    """Where the axis of the pieces is after a node; None if the node needs all of it."""
    if node.op_type in _ELEMENTWISE:
        return pieces.axis
    if node.op_type in _BROADCAST:
        return _broadcast(rewriting, node)
    if node.op_type in _ALONG_AN_AXIS:
        return pieces.axis if _rest(rewriting, node, pieces) else None
    rule = _RULES.get(node.op_type)
    return rule(rewriting, node, pieces) if rule else None


def _broadcast(rewriting: Rewriting, node: onnx.NodeProto) -> int | None:
    """All inputs in pieces must be cut where the output is, all others must not vary there."""
    rank = len(_shape(rewriting, node.output[0]))
    cut = {rank - len(_shape(rewriting, x)) + y.axis for x in node.input if (y := rewriting.pieces.get(x))}
    if len(cut) != 1:
        return None
    (axis,) = cut
    for name in node.input:
        shape = _shape(rewriting, name)
        own = axis - (rank - len(shape))
        if name not in rewriting.pieces and own >= 0 and shape[own] != 1:
            return None
    return axis


def _rest(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> bool:
    """Whether a node that works along its last axes leaves the axis of the pieces alone."""
    if node.input[0] not in rewriting.pieces:
        return False
    rank = len(_shape(rewriting, node.input[0]))
    default = 1 if rewriting.opset < 13 and node.op_type != "LayerNormalization" else -1
    first = int(_attribute(node, "axis", default)) % rank
    # Before opset 13, and in a normalisation, all axes from this one on belong together.
    return pieces.axis < first


def _squeeze(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    axes = _axes(rewriting, node)
    rank = len(_shape(rewriting, node.input[0]))
    if axes is None:
        axes = [i for i, size in enumerate(_shape(rewriting, node.input[0])) if size == 1]
        if 1 in pieces.sizes:
            return None  # a piece of one step would lose its axis
    gone = {axis % rank for axis in axes}
    return None if pieces.axis in gone else pieces.axis - sum(axis < pieces.axis for axis in gone)


def _unsqueeze(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    axes = _axes(rewriting, node)
    if axes is None:
        return None
    rank = len(_shape(rewriting, node.output[0]))
    new = {axis % rank for axis in axes}
    return [axis for axis in range(rank) if axis not in new][pieces.axis]


def _transpose(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    rank = len(_shape(rewriting, node.input[0]))
    order = list(_attribute(node, "perm", list(range(rank))[::-1]))
    return order.index(pieces.axis)


def _matmul(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    left, right = node.input
    rank = len(_shape(rewriting, left))
    apart = left in rewriting.pieces and right not in rewriting.pieces and len(_shape(rewriting, right)) == 2
    return pieces.axis if apart and rank >= 2 and pieces.axis < rank - 1 else None


def _concat(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    rank = len(_shape(rewriting, node.output[0]))
    together = _attribute(node, "axis", 0) % rank
    alike = all(
        (found := rewriting.pieces.get(name)) and (found.axis, found.bounds) == (pieces.axis, pieces.bounds)
        for name in node.input
    )
    return pieces.axis if alike and together != pieces.axis else None


def _reshape(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> int | None:
    """A reshape that leaves the axis, and all before it, as they are."""
    axis = pieces.axis
    before, after = _shape(rewriting, node.input[0]), _shape(rewriting, node.output[0])
    fixed = rewriting.value(node.input[1]) is not None and not _attribute(node, "allowzero", 0)
    return axis if fixed and before[: axis + 1] == after[: axis + 1] else None


def _new_shape(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> str:
    shape = rewriting.value(node.input[1])
    assert shape is not None
    changed = shape.copy()
    if changed[pieces.axis] > 0:
        changed[pieces.axis] = 0  # as long as the piece is
    return rewriting.weight(f"{node.name}/shape", changed)


def _pick(rewriting: Rewriting, node: onnx.NodeProto, pieces: Pieces) -> bool:
    """One step out of all of them, most often the last, is in one of the pieces."""
    index = rewriting.value(node.input[1])
    rank = len(_shape(rewriting, node.input[0]))
    if index is None or index.ndim or node.input[0] not in rewriting.pieces:
        return False
    if _attribute(node, "axis", 0) % rank != pieces.axis:
        return False
    step = int(index) % pieces.bounds[-1]
    k = next(k for k in range(len(pieces.names)) if step < pieces.bounds[k + 1])
    copy = rewriting.copy(node)
    copy.input[0] = pieces.names[k]
    copy.input[1] = rewriting.weight(f"{node.name}/step", np.array(step - pieces.bounds[k], index.dtype))
    return True


def _shape(rewriting: Rewriting, name: str) -> tuple[int, ...]:
    if name in rewriting.graph.tensors:
        return rewriting.graph.tensors[name].shape
    value = rewriting.value(name)
    return () if value is None else value.shape


def _axes(rewriting: Rewriting, node: onnx.NodeProto) -> list[int] | None:
    """The axes of a squeeze: an attribute before opset 13, an input since."""
    found = _attribute(node, "axes", None)
    if found is not None:
        return list(found)
    value = rewriting.value(node.input[1]) if len(node.input) > 1 else None
    return None if value is None else [int(axis) for axis in value.reshape(-1)]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((x for x in node.attribute if x.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


_RULES: dict[str, Callable[[Rewriting, onnx.NodeProto, Pieces], int | None]] = {
    "Concat": _concat,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
