"""Fused recurrent nodes opened, so that two devices can share them: by direction, and by chunks of time steps.

Chunks of one layer follow each other, but a chunk of the next layer needs only those before it: layers overlap as a
wavefront. What lies between two layers is cut along with them (`glue`). All chunks of a node share its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from ensemble_runtime.partition.glue import push
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.recurrence import Cut, Recurrence, divides, open_node, openable
from ensemble_runtime.partition.rewriting import Rewriting, opset_of

RECURRENT = ("LSTM", "GRU", "RNN")


def openings(graph: Graph) -> dict[str, int]:
    """The recurrent operators that can be opened, and how many time steps each has."""
    opset = opset_of(graph.light)
    return {
        node.name: graph.tensors[node.input[0]].shape[1 if Recurrence(node).batch_first else 0]
        for node in graph.light.graph.node
        if node.op_type in RECURRENT
        and node.domain in ("", "ai.onnx")
        and node.input[0] in graph.tensors
        and openable(Recurrence(node), set(graph.weights), opset)
    }


def overlapping(graph: Graph, steps: int) -> dict[str, int]:
    """Which operators to open so that two devices have work at once, for `opened`.

    Layers of two directions are opened by direction: the next one needs both ends of them at once. Others are cut into
    chunks of so many steps where a recurrent layer comes before or after them, and stay whole where none does.
    """
    possible = openings(graph)
    before: dict[str, set[str]] = {}
    for operator in graph.operators:
        near = graph.predecessors[operator.name]
        before[operator.name] = {x for other in near for x in (other, *before[other]) if x in possible}
    stacked = {name for name in possible if before[name]} | {x for name in possible for x in before[name]}
    nodes = {node.name: Recurrence(node) for node in graph.light.graph.node if node.name in possible}
    return {
        name: 0 if len(node.directions) > 1 else steps
        for name, node in nodes.items()
        if len(node.directions) > 1 or name in stacked
    }


def opened(graph: Graph, steps: Mapping[str, int], cuts: Mapping[str, Cut] | None = None) -> Graph:
    """The graph with some recurrent operators opened; it computes the same.

    Args:
        graph: The graph.
        steps: By operator, how many time steps a chunk has; 0 opens directions only. Operators that are not named,
            and those that cannot be opened (see `openings`), stay whole.
        cuts: By operator, other chunks than of so many steps.
    """
    possible = openings(graph)
    rewriting = Rewriting(graph)
    for node in graph.light.graph.node:
        chunk = steps.get(node.name, 0)
        if node.name in possible and node.name in steps and divides(Recurrence(node), chunk, possible[node.name]):
            open_node(rewriting, node, chunk, (cuts or {}).get(node.name))
        elif not push(rewriting, node):
            for name in graph.by_name[node.name].inputs:
                rewriting.whole(name)
            rewriting.copy(node)
    return rewriting.graph_of()


def alternating(graph: Graph) -> Placement:
    """Every other recurrent layer on the second device, and what follows a layer on the device of that layer.

    All chunks of a layer, which share recurrent weights, are on one device; directions and branches count as layers.
    """
    layers: dict[tuple[str, ...], int] = {}
    device: dict[str, int] = {}
    for operator in graph.operators:
        if operator.op_type in RECURRENT:
            device[operator.name] = layers.setdefault(tuple(graph.nodes[operator.name].input[2:3]), len(layers)) % 2
        else:
            device[operator.name] = next((device[x] for x in graph.predecessors[operator.name]), 0)
    return Placement(device)
