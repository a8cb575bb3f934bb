"""Operators whose tensors are as large as the data tell: no place can be kept for those before a batch comes."""

from __future__ import annotations

import onnx

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.graph import Graph, bodies
from ensemble_runtime.partition.runs import static
from ensemble_runtime.partition.shapes import certain

_BY_DATA = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
_BY_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""The inputs that tell how large the outputs are."""


def refuse_varying(graph: Graph) -> None:
    """Refuse a graph in which the size of a tensor depends on more than the shapes of the inputs.

    Shapes that inference does not tell come from a run on zeros; on other data such a tensor has another size.

    Raises:
        ModelInvalidError: there is one; the message names the operator.
    """
    known = certain(graph.light, {name: graph.tensors[name].shape for name in graph.inputs})
    given = {*graph.weights, *(y for name in static(graph) for y in graph.by_name[name].outputs)}
    for operator in graph.operators:
        node = graph.nodes[operator.name]
        if known.issuperset(operator.outputs) or given.issuperset(operator.outputs):
            continue
        sizes = [node.input[i] for i in _BY_INPUTS.get(node.op_type, ()) if i < len(node.input)]
        if _by_data(node) or not given.issuperset(filter(None, sizes)):
            raise ModelInvalidError(
                f"cannot be partitioned: how large '{operator.outputs[0]}' is, which {node.op_type} puts out, "
                "depends on the data"
            )


def _by_data(node: onnx.NodeProto) -> bool:
    return node.op_type in _BY_DATA or any(_by_data(inner) for body in bodies(node) for inner in body.node)
