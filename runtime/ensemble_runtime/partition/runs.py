"""What each device does in which order: maximal runs of operators, each of them one call of ONNX Runtime.

Three kinds of operators are in no run. Those that only rename bytes (a squeeze, a split or a join along the first axis)
are views of one buffer. Those that turn the axes of an input are done where the input is copied to its buffer. Those
that depend on nothing but shapes are computed once for each number of rows.

What is left is cut where a device has to wait for the other, or the other waits for it, so that tensors cross as early
as they can; and around operators that share weights, such as the chunks of a layer, so that one session computes all;
a product among these takes along what turns its axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import onnx

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.graph import Graph, Operator, Placement

_RENAMING = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_SHAPE_ONLY = {"Shape", "Size"}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_HEAVY = 4096
"""Bytes; sharing a smaller weight is no reason to share a session."""


@dataclass(frozen=True)
class View:
    """A tensor that is a part of another one's bytes, or all of them."""

    of: str
    before: tuple[str, ...] = ()
    """Tensors whose bytes come first in there."""


@dataclass(frozen=True)
class Turned:
    """A tensor that is an input with its axes in another order."""

    name: str
    axes: tuple[int, ...]
    """Of the input, in the tensor's order."""


@dataclass(frozen=True)
class Run:
    """Operators of one device, computed by one call."""

    device: int
    operators: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """What is read outside of the run, or is the model's answer."""
    waits: int | None = None
    """The run of the other device, counted in the whole program, that must have ended before."""
    feeds: bool = False
    """Whether a run of the other device waits for this one."""


@dataclass(frozen=True)
class Program:
    """All that is computed for one batch."""

    runs: tuple[Run, ...]
    """In an order in which one device alone could compute them."""
    prelude: tuple[str, ...]
    """Operators that depend on shapes only."""
    views: Mapping[str, View]
    turned: Mapping[str, Turned] = field(default_factory=dict)
    """Inputs that nobody reads but in another order of axes."""


def program(graph: Graph, placement: Placement) -> Program:
    """Cut a placed graph into runs.

    Args:
        graph: The graph.
        placement: A device for each of its operators.

    Raises:
        ModelInvalidError: the placement leaves out an operator, or its order is not topological.
    """
    order = _ordered(graph, placement)
    prelude = static(graph)
    views, renaming = _views(graph, prelude)
    turned = _turned(graph)
    renaming |= {graph.producers[x.name] for x in turned.values()}
    needs = _needs(graph, prelude, renaming)
    working = [x for x in order if x.name not in prelude and x.name not in renaming]
    groups = _groups(graph, placement, working, needs)
    runs = tuple(_run(graph, placement, group, renaming, needs) for group in groups)
    return Program(_awaited(runs, needs), tuple(x.name for x in order if x.name in prelude), views, turned)


def root(views: Mapping[str, View], name: str) -> str:
    """The tensor whose buffer holds a tensor's bytes."""
    while name in views:
        name = views[name].of
    return name


def _ordered(graph: Graph, placement: Placement) -> list[Operator]:
    if missing := [x.name for x in graph.operators if placement.device.get(x.name) not in (0, 1)]:
        raise ModelInvalidError(f"the partition has no device for operator {missing[0]}")
    order = [graph.by_name[name] for name in placement.order] if placement.order else list(graph.operators)
    done: set[str] = set()
    for operator in order:
        if any(other not in done for other in graph.predecessors[operator.name]):
            raise ModelInvalidError(f"the partition's order has operator {operator.name} before what it reads")
        done.add(operator.name)
    if not len(done) == len(order) == len(graph.operators):
        raise ModelInvalidError("the partition's order does not name every operator once")
    return order


def static(graph: Graph) -> set[str]:
    """Operators whose outputs depend on the shapes of the inputs alone."""
    found: set[str] = set()
    for operator in graph.operators:
        before = {graph.producers.get(x) for x in operator.inputs}
        if operator.op_type in _SHAPE_ONLY or (before <= found and operator.op_type not in _RANDOM):
            found.add(operator.name)
    return found


def _views(graph: Graph, prelude: set[str]) -> tuple[dict[str, View], set[str]]:
    """The tensors that need no computing, and the operators that make them; the same for any number of rows."""
    views: dict[str, View] = {}
    renaming: set[str] = set()
    for operator in graph.operators:
        found = {} if operator.name in prelude else _views_of(graph, graph.nodes[operator.name], operator, views)
        in_place = operator.op_type != "Concat" or all(
            graph.producers.get(part) not in {None, *prelude} for part in found
        )
        if found and in_place:
            views |= found
            renaming.add(operator.name)
    return views, renaming


def _turned(graph: Graph) -> dict[str, Turned]:
    found = {}
    for name in graph.inputs:
        readers = graph.readers.get(name, ())
        if len(readers) != 1 or name in graph.outputs or graph.by_name[readers[0]].op_type != "Transpose":
            continue
        node = graph.nodes[readers[0]]
        axes = next((tuple(x.ints) for x in node.attribute if x.name == "perm"), None)
        rank = len(graph.tensors[name].shape)
        found[name] = Turned(node.output[0], axes or tuple(range(rank))[::-1])
    return found


def _views_of(graph: Graph, node: onnx.NodeProto, operator: Operator, views: Mapping[str, View]) -> dict[str, View]:
    """What an operator makes views of: its outputs, or, where it joins, what its inputs are views of."""
    data = node.input[0] if node.input else ""
    along_first = next((x.i for x in node.attribute if x.name == "axis"), 0) == 0
    if data not in graph.tensors:
        return {}
    if operator.op_type in _RENAMING and operator.inputs == (data,) and len(operator.outputs) == 1:
        return {operator.outputs[0]: View(data)}
    if operator.op_type == "Split" and along_first and operator.inputs == (data,):
        return {output: View(data, operator.outputs[:i]) for i, output in enumerate(operator.outputs)}
    if operator.op_type == "Concat" and along_first and not operator.weights:
        parts = tuple(node.input)
        roots = {part: root(views, part) for part in parts}
        # A part that has its place in something larger cannot have another one.
        whole = all(graph.tensors[part].bytes == graph.tensors[own].bytes for part, own in roots.items())
        if whole and len(set(roots.values())) == len(parts):
            return {roots[part]: View(operator.outputs[0], parts[:i]) for i, part in enumerate(parts)}
    return {}


def _needs(graph: Graph, prelude: set[str], renaming: set[str]) -> dict[str, frozenset[str]]:
    """The operators in runs that must have ended before an operator, seen through views."""
    needs: dict[str, frozenset[str]] = {}
    for operator in graph.operators:
        near = [x for x in graph.predecessors[operator.name] if x not in prelude]
        found = {x for x in near if x not in renaming}
        needs[operator.name] = frozenset(found.union(*(needs[x] for x in near if x in renaming)))
    return needs


def _groups(
    graph: Graph, placement: Placement, working: Sequence[Operator], needs: Mapping[str, frozenset[str]]
) -> list[list[str]]:
    """Operators that are computed in one go, in the order in which one device alone could compute the groups."""
    position = {operator.name: i for i, operator in enumerate(working)}
    device = placement.device
    feeding = {other for x in working for other in needs[x.name] if device[other] != device[x.name]}
    alone = _alone(graph, working)
    turned = _turned_products(device, working, needs, alone)
    groups: list[list[str]] = []
    open_groups: dict[int, list[str] | None] = {0: None, 1: None}
    known = {0: -1, 1: -1}  # how far each device knows the other one to be
    for operator in working:
        own = device[operator.name]
        latest = max((position[x] for x in needs[operator.name] if device[x] != own), default=-1)
        group = open_groups[own]
        if group is None or latest > known[own] or operator.name in alone:
            group = []
            groups.append(group)
        group.append(operator.name)
        known[own] = max(known[own], latest)
        ends = operator.name in alone or operator.name in turned.values()
        open_groups[own] = None if operator.name in feeding or (ends and operator.name not in turned) else group
    return groups


def _alone(graph: Graph, working: Sequence[Operator]) -> set[str]:
    readers: dict[str, list[str]] = {}
    for operator in working:
        for weight in operator.weights:
            readers.setdefault(weight, []).append(operator.name)
    shared = (names for weight, names in readers.items() if len(names) > 1 and graph.weights[weight] >= _HEAVY)
    return {name for names in shared for name in names}


def _turned_products(
    device: Mapping[str, int], working: Sequence[Operator], needs: Mapping[str, frozenset[str]], alone: set[str]
) -> dict[str, str]:
    """The products, of those that share weights, that a transposition follows and nobody else reads; with that."""
    readers = Counter(other for x in working for other in needs[x.name])
    found = {}
    for own in (0, 1):
        for product, turn in pairwise(x for x in working if device[x.name] == own):
            kinds = product.op_type, turn.op_type
            only = needs[turn.name] == {product.name} and readers[product.name] == 1
            if only and kinds == ("MatMul", "Transpose") and product.name in alone:
                found[product.name] = turn.name
    return found


def _run(
    graph: Graph, placement: Placement, group: Sequence[str], renaming: set[str], needs: Mapping[str, frozenset[str]]
) -> Run:
    own = set(group)
    inside = sorted(own | _views_between(graph, own, renaming, needs), key=graph.positions.__getitem__)
    operators = [graph.by_name[name] for name in inside]
    made = {output for operator in operators for output in operator.outputs}
    outputs = [y for x in operators if x.name in own for y in x.outputs]
    return Run(
        device=placement.device[group[0]],
        operators=tuple(inside),
        inputs=tuple(dict.fromkeys(x for operator in operators for x in operator.inputs if x not in made)),
        outputs=tuple(y for y in outputs if y in graph.outputs or not own.issuperset(graph.readers.get(y, ()))),
    )


def _views_between(graph: Graph, group: set[str], renaming: set[str], needs: Mapping[str, frozenset[str]]) -> set[str]:
    """Views that a group reads of its own tensors: while it runs, these are in no buffer yet."""
    found: set[str] = set()
    ahead = list(group)
    while ahead:
        for before in graph.predecessors[ahead.pop()]:
            if before in renaming and before not in found and needs[before] & group:
                found.add(before)
                ahead.append(before)
    return found


def _awaited(runs: Sequence[Run], needs: Mapping[str, frozenset[str]]) -> tuple[Run, ...]:
    """The runs with what they wait for on the other device, as far as it is not known from an earlier run."""
    run_of = {name: i for i, run in enumerate(runs) for name in run.operators if name in needs}
    known = {0: -1, 1: -1}
    waits: list[int | None] = []
    for run in runs:
        needed = {run_of[x] for name in run.operators for x in needs[name]}
        latest = max((i for i in needed if runs[i].device != run.device), default=-1)
        waits.append(latest if latest > known[run.device] else None)
        known[run.device] = max(known[run.device], latest)
    return tuple(
        replace(run, waits=wait, feeds=i in waits) for i, (run, wait) in enumerate(zip(runs, waits, strict=True))
    )
