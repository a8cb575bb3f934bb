"""What no allotment may ever do, over random clusters and ensembles."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.controller.allotment import Allotment, allot
from ensemble_operator.controller.placing import Copy, Request
from ensemble_operator.inventory.cpu import cores_of
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory, Node
from ensemble_operator.inventory.terms import Terms
from ensemble_operator.manifests.resources import GPU_BESIDE_MILLIS, GPU_MILLIS
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

GIB = 2**30
TYPES = {"big": (40, 0.01), "small": (16, 0.03)}
"""GiB, and seconds of a row."""
CORE_GIB = 2


def solve(problem: Problem) -> Plan:
    return make_plan(problem, evaluations=8)


def _node(index: int, drawn: tuple[int, str, int]) -> Node:
    count, type_, cores = drawn
    name, size = f"n{index}", TYPES[type_][0] * GIB
    devices = tuple(Device(f"gpu{i}", name, DeviceKind.GPU, type_, size) for i in range(count))
    millis, memory = cores * 1000, cores * CORE_GIB * GIB
    return Node(name, True, None, devices, millis, memory, millis, memory)


def _request(index: int, drawn: tuple[list[int], int, int, bool, int]) -> Request:
    sizes, copies, priority, preempts, cores = drawn
    types = {t: seconds for t, (_, seconds) in TYPES.items()} | {f"cpu-{cores}": 0.3}
    members = tuple(
        PlanMember(f"m{i}", {t: Profile(f"m{i}", t, "FP32", (Point(1, s, size * GIB),)) for t, s in types.items()})
        for i, size in enumerate(sizes)
    )
    terms = Terms(cores_per_device=cores)
    host = {"gpu_millis": GPU_MILLIS, "gpu_beside_millis": GPU_BESIDE_MILLIS}
    return Request(f"x/e{index}", members, len(members), terms, copies, priority, f"{index:04}", preempts, **host)


NODES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(sorted(TYPES)), st.integers(0, 4)), min_size=1, max_size=4
).map(lambda drawn: Inventory(tuple(_node(i, d) for i, d in enumerate(drawn))))
REQUEST = st.tuples(
    st.lists(st.sampled_from([1, 3, 10, 14, 30]), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.booleans(),
    st.integers(1, 2),
)
REQUESTS = st.lists(REQUEST, min_size=1, max_size=5).map(lambda drawn: [_request(i, d) for i, d in enumerate(drawn)])


def used(plan: Plan) -> set[Device]:
    return {device for device, _, _ in plan.cells}


def holding(requests: list[Request], before: Allotment) -> list[Request]:
    return [
        dataclasses.replace(
            request,
            held={
                i: Copy(tuple(used(plan)), {(d.node, d.name, m): b for d, m, b in plan.cells})
                for i, plan in before.grants[request.key].plans.items()
            },
        )
        for request in requests
    ]


def digests(found: Allotment) -> dict[str, dict[int, str]]:
    return {key: {i: plan.digest for i, plan in grant.plans.items()} for key, grant in found.grants.items()}


def drivers(found: Allotment, node: str) -> int:
    """Thousandths of a core that pods on a node request for their GPUs, as `resources` makes them."""
    total = 0
    for plan in (plan for grant in found.grants.values() for plan in grant.plans.values()):
        kinds = Counter(device.kind for device in used(plan) if device.node == node)
        total += kinds[DeviceKind.GPU] * (GPU_BESIDE_MILLIS if kinds[DeviceKind.CPU] else GPU_MILLIS)
    return total


def assert_sound(requests: list[Request], there: Inventory, found: Allotment) -> None:
    """No device twice, no device that is not there, no more cores and memory than the node has, no limit exceeded."""
    given_out = [device for grant in found.grants.values() for plan in grant.plans.values() for device in used(plan)]
    assert max(Counter((d.node, d.name) for d in given_out).values(), default=1) == 1
    for node in there.nodes:
        here = [d for d in given_out if d.node == node.name]
        assert {d for d in here if d.kind is DeviceKind.GPU} <= set(node.devices)
        assert sum(map(cores_of, here)) * 1000 + drivers(found, node.name) <= node.cpu_free_millis
        assert sum(d.memory_bytes for d in here if d.kind is DeviceKind.CPU) <= node.memory_free_bytes
    assert not set(found.free) & set(given_out)
    for request in requests:
        grant = found.grants[request.key]
        assert all(len(used(plan)) <= request.most for plan in grant.plans.values())
        assert set(grant.plans) <= set(range(request.copies))
        assert (grant.waiting is None) == (len(grant.plans) == request.copies)


@settings(max_examples=30, deadline=None)
@given(st.data(), NODES, REQUESTS)
def test_no_device_is_given_twice_and_order_plays_no_part(
    data: st.DataObject, there: Inventory, requests: list[Request]
) -> None:
    found = allot(requests, there, solve)
    assert_sound(requests, there, found)
    assert digests(allot(data.draw(st.permutations(requests)), there, solve)) == digests(found)


@settings(max_examples=30, deadline=None)
@given(NODES, REQUESTS)
def test_who_comes_first_is_served_first(there: Inventory, requests: list[Request]) -> None:
    """One that waits would not fit either if nobody were there but those that rank before it."""
    found = allot(requests, there, solve)
    ranked = sorted(requests, key=lambda r: r.rank)
    for position, request in enumerate(ranked):
        alone = allot(ranked[: position + 1], there, solve)
        assert digests(alone)[request.key].keys() == digests(found)[request.key].keys()


@settings(max_examples=20, deadline=None)
@given(NODES, REQUESTS)
def test_what_runs_stays_where_it_is_and_nothing_new_changes_nothing(there: Inventory, requests: list[Request]) -> None:
    peaceful = [dataclasses.replace(request, preempts=False) for request in requests]
    first = allot(peaceful, there, solve)
    second = allot(holding(peaceful, first), there, solve)
    assert_sound(peaceful, there, second)
    for key, grant in first.grants.items():
        for index, plan in grant.plans.items():
            assert used(plan) <= used(second.grants[key].plans[index]) or len(
                used(second.grants[key].plans[index])
            ) < len(used(plan))


@settings(max_examples=20, deadline=None)
@given(NODES, REQUESTS, REQUEST)
def test_a_newcomer_takes_nothing_from_anybody_unless_it_may(
    there: Inventory, requests: list[Request], drawn: tuple[list[int], int, int, bool, int]
) -> None:
    peaceful = [dataclasses.replace(request, preempts=False) for request in requests]
    running = holding(peaceful, allot(peaceful, there, solve))
    newcomer = dataclasses.replace(_request(9, drawn), priority=3)
    shy = allot([*running, dataclasses.replace(newcomer, preempts=False)], there, solve)
    bold = allot([*running, dataclasses.replace(newcomer, preempts=True)], there, solve)
    for found in (shy, bold):
        assert_sound([*running, newcomer], there, found)
    assert all(shy.grants[r.key].plans.keys() >= r.held.keys() for r in running)
    victims = {key for key, grant in bold.grants.items() if grant.preempted_by}
    assert not victims or bold.grants[newcomer.key].plans
    assert all(bold.grants[r.key].plans.keys() >= r.held.keys() for r in running if r.key not in victims)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=2).filter(lambda counts: sum(counts) > 1),
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=4, max_size=8),
)
def test_nobody_starves(counts: list[int], stream: list[tuple[int, int]]) -> None:
    """One that needs every GPU gets them when those that were there before it are gone, whoever comes after it."""
    there = Inventory(tuple(_node(i, (count, "big", 2)) for i, count in enumerate(counts)))
    patient = dataclasses.replace(_request(5000, ([30] * sum(counts), 1, 0, False, 1)))
    early = [_request(i, ([30] * stream[i][0], 1, 0, False, 1)) for i in range(2)]
    present = [(request, 3) for request in holding(early, allot(early, there, solve))]
    for turn, (size, stay) in enumerate(stream * 2):
        newcomer = _request(9000 + turn, ([30] * size, 1, 0, False, 1))
        present = [(r, left - 1) for r, left in present if left > 1 or not r.held] + [(newcomer, stay)]
        requests = [request for request, _ in present]
        found = allot([patient, *requests], there, solve)
        if found.grants[patient.key].plans:
            return
        present = list(zip(holding(requests, found), (left for _, left in present), strict=True))
    raise AssertionError("it was overtaken again and again")
