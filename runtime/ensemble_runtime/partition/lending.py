"""Two layers in chunks, whose devices lend each other a hand while they would have nothing to do.

The second layer's device waits for the first chunk of the first layer, the first one's for the last chunks of the
second. What either can do meanwhile is to multiply the other layer's inputs by their weights, a sixth of its work. For
the first chunks of the first layer all of it is done at once, while the very first is computed; so that layer gets
ahead, and has time to multiply for the last chunks of the other.

A stack of two GRU or LSTM layers (256 units, 64 steps, one row) takes 3 to 5 % less time so, at other moments of a
machine as much as without, and one of 512 units more. Each device holds the input weights of both layers, and its own
layer's other weights twice, for chunks with products and without. The trial decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.opening import alternating, opened, openings, overlapping
from ensemble_runtime.partition.recurrence import Cut, Recurrence
from ensemble_runtime.partition.rewriting import opset_of

_OPSET = 9
"""Below that not every node is cut in time."""
SHORT, TAIL, BEHIND = 4, 2, 4
"""So many chunks are short at the beginning, and at least so many full ones, with what is left, at the end; and so many
of the second layer's last ones are given their products. What is saved for the first layer pays for these."""


def lent(graph: Graph, steps: int) -> tuple[Graph, Placement] | None:
    """The graph in chunks with products of the other device, and who computes what when.

    Chunks have so many steps, in the middle twice as many, for each costs a call; the first ones are short, so that the
    other device has something to do soon, and the last ones, so that it is through soon.

    None where there are not two layers in one direction, of as many steps each, or too few of these; where there are
    several rows, which would meet in the products (what is not a number in one of them would be in all); and in an
    opset that is too old.
    """
    layers = [Recurrence(node) for node in graph.light.graph.node if node.name in overlapping(graph, steps)]
    names, lengths = [layer.node.name for layer in layers], {openings(graph)[layer.node.name] for layer in layers}
    plain = opset_of(graph.light) >= _OPSET and all(_plain(graph, layer) for layer in layers)
    bounds = _bounds(lengths.pop(), steps) if len(layers) == 2 and len(lengths) == 1 and plain and steps else ()
    if not bounds:
        return None
    first, second = names
    count = len(bounds) - 1
    last = range(count - BEHIND, count)
    ahead = range(1, SHORT), range(SHORT, SHORT + 2)
    cuts = {first: Cut(bounds, ahead), second: Cut(bounds, tuple(range(k, k + 1) for k in last))}
    changed = opened(graph, dict.fromkeys(names, steps), cuts)
    device = dict(alternating(changed).device)
    for layer, name in enumerate(names):
        others = [x.name for x in changed.operators if x.name.startswith(f"{name}/products/")]
        device |= dict.fromkeys(others, 1 - layer)
    wanted = [f"{first}/0", *(f"{first}/products/{chunks[0]}" for chunks in ahead)]
    for k in range(count):
        wanted += [f"{first}/{k}", *([f"{second}/products/{k}"] if k in last else []), f"{second}/{k}"]
    return changed, Placement(device, tuple(_in_order(changed, wanted)))


def _plain(graph: Graph, layer: Recurrence) -> bool:
    """Whether a layer has one direction and one row, all of it."""
    one_row = graph.tensors[layer.input(0)].shape[0 if layer.batch_first else 1] == 1
    return layer.directions == ("forward",) and one_row and not layer.input(4)


def _bounds(length: int, steps: int) -> tuple[int, ...]:
    """Where chunks begin and end; none where there are not at least two long ones."""
    long = (length - (SHORT + TAIL) * steps - 1) // (2 * steps)
    sizes = [*[steps] * SHORT, *[2 * steps] * long]
    return (*accumulate(sizes, initial=0), *range(sum(sizes) + steps, length, steps), length) if long >= 2 else ()


def _in_order(graph: Graph, wanted: Iterable[str]) -> list[str]:
    """All operators: those that are named in their order, each right behind what it reads."""
    found: dict[str, None] = {}
    for name in (*wanted, *(operator.name for operator in graph.operators)):
        lacking: set[str] = set()
        ahead = [name]
        while ahead:
            one = ahead.pop()
            if one not in found and one not in lacking:
                lacking.add(one)
                ahead += graph.predecessors[one]
        found |= dict.fromkeys(sorted(lacking, key=graph.positions.__getitem__))
    return list(found)
