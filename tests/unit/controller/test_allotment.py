"""Who gets which devices: rules by example, planned by the real planner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from ensemble_operator.api.objective import Goal, Objective
from ensemble_operator.controller.allotment import Allotment, allot
from ensemble_operator.controller.placing import Copy, Request, catalogue, solved
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory, Node, Taint
from ensemble_operator.inventory.terms import Terms
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

GIB = 2**30
SPEED = {"big": 1.0, "small": 4.0, "cpu-1": 16.0}
"""Seconds of a batch of 8 on each type, in units of 10 ms."""


def solve(problem: Problem) -> Plan:
    return make_plan(problem, evaluations=60)


def gpus(node: str, count: int, type_: str = "big", gib: int = 40) -> tuple[Device, ...]:
    return tuple(Device(f"gpu{i}", node, DeviceKind.GPU, type_, gib * GIB) for i in range(count))


def node(name: str, count: int = 0, type_: str = "big", gib: int = 40, cores: int = 0, **more: Any) -> Node:
    cpu = {"cpu_millis": cores * 1000, "cpu_free_millis": cores * 1000}
    memory = dict.fromkeys(("memory_bytes", "memory_free_bytes"), int(cores * 5.4 * GIB))  # 4 GiB come with one core
    return Node(name, more.pop("ready", True), devices=gpus(name, count, type_, gib), **cpu, **memory, **more)


def cluster(*nodes: Node) -> Inventory:
    return Inventory(tuple(sorted(nodes, key=lambda n: n.name)))


def member(name: str, gib: float, types: Iterable[str] = SPEED) -> PlanMember:
    size = int(gib * GIB)
    points = {t: (Point(1, SPEED[t] * 0.004, size), Point(8, SPEED[t] * 0.01, size + GIB // 8)) for t in types}
    return PlanMember(name, {t: Profile(name, t, "FP32", p) for t, p in points.items()})


def want(key: str, *sizes: float, types: Iterable[str] = SPEED, **more: Any) -> Request:
    members = tuple(member(f"m{i}", gib, types) for i, gib in enumerate(sizes))
    return Request(key, members, **({"most": len(members)} | more))


def holding(request: Request, plans: Mapping[int, Plan]) -> Request:
    """The request in the next round, when what was planned runs."""
    held = {}
    for index, plan in plans.items():
        devices = {(d.node, d.name): d for d, _, _ in plan.cells}
        held[index] = Copy(tuple(devices.values()), {(d.node, d.name, m): b for d, m, b in plan.cells})
    return dataclasses.replace(request, held=held)


def then(requests: Iterable[Request], before: Allotment) -> list[Request]:
    return [holding(r, before.grants[r.key].plans) if r.key in before.grants else r for r in requests]


def used(before: Allotment, key: str, index: int = 0) -> set[tuple[str, str]]:
    return {(d.node, d.name) for d, _, _ in before.grants[key].plans[index].cells}


def nodes_of(before: Allotment, key: str) -> list[str]:
    return sorted({n for i in before.grants[key].plans for n, _ in used(before, key, i)})


def test_a_copy_stays_on_one_node_if_one_suffices() -> None:
    found = allot([want("x/a", 30, 30)], cluster(node("a", 1), node("b", 1), node("c", 2)), solve)
    assert used(found, "x/a") == {("c", "gpu0"), ("c", "gpu1")}


def test_it_crosses_nodes_if_none_suffices() -> None:
    found = allot([want("x/a", 30, 30)], cluster(node("a", 1), node("b", 1)), solve)
    assert nodes_of(found, "x/a") == ["a", "b"]


@pytest.mark.parametrize(("cost", "nodes"), [(0.0, {"n1", "n2"}), (1.0, {"n1"})])
def test_dear_nodes_are_not_crossed_to(cost: float, nodes: set[str]) -> None:
    request = want("x/a", 10, most=2, objective=Objective(node_cost=cost))
    assert solved(request, [*gpus("n1", 1), *gpus("n2", 1)], {}, solve).nodes == nodes


@pytest.mark.parametrize(("cost", "moved"), [(0.0, True), (1.0, False)])
def test_dear_moves_are_not_made(cost: float, moved: bool) -> None:
    request = want("x/a", 10, most=2, objective=Objective(move_cost=cost))
    running = {("n1", "gpu0", "m0"): 8}
    assert (solved(request, gpus("n1", 2), running, solve).running != running) is moved


def test_no_more_devices_than_the_limit_and_by_default_none_beyond_the_members() -> None:
    there = cluster(node("a", 8))
    assert len(used(allot([want("x/a", 4, 4, 4)], there, solve), "x/a")) == 3
    assert len(used(allot([want("x/a", 4, 4, 4, most=1)], there, solve), "x/a")) == 1


def test_copies_have_devices_of_their_own_on_nodes_of_their_own() -> None:
    found = allot([want("x/a", 4, 4, copies=3)], cluster(*(node(n, 4) for n in "abc")), solve)
    assert sorted(found.grants["x/a"].plans) == [0, 1, 2]
    assert nodes_of(found, "x/a") == ["a", "b", "c"]
    crowded = allot([want("x/a", 4, copies=3)], cluster(node("a", 2), node("b", 1)), solve)
    assert len({d for i in range(3) for d in used(crowded, "x/a", i)}) == 3


def test_the_fast_type_is_preferred_and_the_large_one_taken_where_it_has_to_be() -> None:
    there = cluster(node("a", 1, "big", 16), node("b", 1, "small", 80))
    assert nodes_of(allot([want("x/a", 10)], there, solve), "x/a") == ["a"]
    assert nodes_of(allot([want("x/a", 60)], there, solve), "x/a") == ["b"]


def test_a_member_that_only_runs_on_cores_gets_cores() -> None:
    members = (member("m0", 4, ["big"]), member("m1", 2, ["big"]), member("m2", 1, ["cpu-1"]))
    found = allot([Request("x/a", members, most=3)], cluster(node("a", 8, cores=4)), solve)
    devices = found.grants["x/a"].plans[0].problem.devices
    assert sorted(d.type for d in devices) == ["big", "big", "cpu-1"]


def test_first_come_first_served_within_a_priority_whatever_the_order_given() -> None:
    there = cluster(node("a", 1))
    old, young = want("x/b", 30, created="2026-01-01T00:00:00Z"), want("x/a", 30, created="2026-01-02T00:00:00Z")
    urgent = want("x/c", 30, created="2026-01-03T00:00:00Z", priority=1)
    for order in ([old, young], [young, old]):
        found = allot(order, there, solve)
        assert found.grants["x/b"].plans
        assert not found.grants["x/a"].plans
    assert allot([old, young, urgent], there, solve).grants["x/c"].plans


def test_what_is_held_is_kept_even_from_a_higher_priority() -> None:
    there, holder = cluster(node("a", 1)), want("x/a", 30)
    before = allot([holder], there, solve)
    found = allot([*then([holder], before), want("x/urgent", 30, priority=9)], there, solve)
    assert used(found, "x/a") == used(before, "x/a")
    assert found.grants["x/urgent"].waiting == (
        "needs 1 device of 40 GiB, the best node has no free device; 1 device that it may use is taken"
    )


def test_two_rounds_with_nothing_new_give_the_same() -> None:
    requests = [want("x/a", 4, 4, 4, copies=2), want("x/b", 30, 30), want("x/c", 1)]
    there = cluster(node("a", 4), node("b", 3), node("c", 1, "small", 16, cores=8))
    first = allot(requests, there, solve)
    second = allot(then(requests, first), there, solve)
    for request in requests:
        plans = [{i: p.digest for i, p in round_.grants[request.key].plans.items()} for round_ in (first, second)]
        assert plans[0] == plans[1]


def holders(there: Inventory, *requests: Request) -> list[Request]:
    return then(requests, allot(requests, there, solve))


def test_preemption_takes_the_lowest_then_the_youngest_and_no_more_than_needed() -> None:
    there = cluster(node("a", 4))
    running = holders(
        there,
        want("x/low-old", 30, created="1"),
        want("x/low-young", 30, created="2"),
        want("x/middle", 30, created="0", priority=1),
        want("x/high", 30, created="0", priority=5),
    )
    urgent = want("x/urgent", 30, priority=3, preempts=True, created="9")
    found = allot([*running, urgent], there, solve)
    assert found.grants["x/urgent"].plans
    victims = {key: grant.preempted_by for key, grant in found.grants.items() if grant.preempted_by}
    assert victims == {"x/low-young": "x/urgent"}
    assert "needs 1 device" in str(found.grants["x/low-young"].waiting)
    two = allot([*running, want("x/urgent", 30, 30, priority=3, preempts=True)], there, solve)
    assert {k for k, g in two.grants.items() if g.preempted_by} == {"x/low-young", "x/low-old"}


def test_preemption_spares_those_whose_devices_are_of_no_use() -> None:
    there = cluster(node("a", 1), node("b", 1, "small", 8))
    running = holders(there, want("x/big", 30), want("x/small", 4, types=["small"], created="later"))
    found = allot([*running, want("x/urgent", 30, priority=1, preempts=True)], there, solve)
    assert {k for k, g in found.grants.items() if g.preempted_by} == {"x/big"}
    assert used(found, "x/small") == {("b", "gpu0")}


def test_nobody_is_preempted_for_what_does_not_fit_anyway_nor_by_an_equal() -> None:
    there = cluster(node("a", 1))
    running = holders(there, want("x/a", 30, created="2"))
    for urgent in (want("x/u", 90, priority=1, preempts=True), want("x/u", 30, created="1", preempts=True)):
        found = allot([*running, urgent], there, solve)
        assert found.grants["x/a"].plans
        assert not found.grants["x/u"].plans


def test_preemption_spares_whom_it_came_upon_first_if_a_later_one_alone_will_do() -> None:
    there = cluster(dataclasses.replace(node("a", 1), devices=(*gpus("a", 1), _small("a"))))
    running = holders(there, want("x/old", 30, created="1"), want("x/young", 4, types=["small"], created="2"))
    found = allot([*running, want("x/urgent", 30, 4, priority=1, preempts=True)], there, solve)
    assert {k for k, g in found.grants.items() if g.preempted_by} == {"x/old"}
    assert used(found, "x/urgent") == {("a", "gpu0")}


def test_the_preempted_may_go_elsewhere() -> None:
    there = cluster(node("a", 1), node("b", 1, "small", 40))
    running = [holding(want("x/a", 30), allot([want("x/a", 30)], cluster(node("a", 1)), solve).grants["x/a"].plans)]
    found = allot([*running, want("x/u", 30, types=["big"], priority=1, preempts=True)], there, solve)
    assert used(found, "x/u") == {("a", "gpu0")}
    assert used(found, "x/a") == {("b", "gpu0")}


def test_a_large_one_that_waits_is_not_overtaken_for_ever_by_small_ones() -> None:
    """One GPU is held by a later one; the other is free, and stays so for the one that waits for both."""
    there = cluster(node("a", 2))
    large = want("x/large", 30, 30, created="1")
    later = holding(want("x/later", 30, created="2"), {0: solve(Problem(gpus("a", 1), (member("m0", 30),)))})
    small = want("x/small", 30, created="3")
    found = allot([large, later, small], there, solve)
    assert not found.grants["x/large"].plans
    assert not found.grants["x/small"].plans
    assert found.free == ()
    gone = allot([large, small], there, solve)
    assert len(used(gone, "x/large")) == 2


def test_one_that_could_never_fit_blocks_nobody() -> None:
    there = cluster(node("a", 2))
    found = allot([want("x/huge", 90, created="1"), want("x/small", 30, created="2")], there, solve)
    assert found.grants["x/small"].plans
    assert found.grants["x/huge"].waiting == "needs 1 device of 90 GiB, the best node has 2 of 40 GiB"


def test_who_waits_reserves_only_what_is_of_use() -> None:
    there = cluster(node("a", 1), node("b", 3, "small", 8))
    later = holding(want("x/later", 30, created="2"), {0: solve(Problem(gpus("a", 1), (member("m0", 30),)))})
    found = allot(
        [want("x/large", 30, created="1"), later, want("x/tiny", 4, types=["small"], created="3")], there, solve
    )
    assert found.grants["x/tiny"].plans


def test_the_reason_names_need_and_the_nearest_node() -> None:
    there = cluster(node("a", 1, "small", 24), node("b", 1, "small", 16))
    found = allot([want("x/a", 20, 20, 20)], there, solve)
    assert found.grants["x/a"].waiting == "needs 3 devices of 24 GiB, the best node has 1 of 24 GiB"
    limited = allot([want("x/a", 30, 30, most=1)], cluster(node("a", 2)), solve)
    assert "spec.devices.max permits 1 device; the members need 2 of 40 GiB" in str(limited.grants["x/a"].waiting)


def test_the_reason_names_the_nodes_that_are_refused() -> None:
    taint = (Taint("team", "b", "NoSchedule"),)
    there = cluster(node("a", 1, taints=taint), node("b", 1, ready=False, excluded="NotReady"), node("c"))
    found = allot([want("x/a", 1)], there, solve)
    assert found.grants["x/a"].waiting == ("no node has a device that it may use; nodes refused: 1 NotReady, 1 Tainted")


def test_the_reason_says_what_keeps_gpus_from_being_offered() -> None:
    there = cluster(*(node(name, notes=("nvidia.com/gpu: shared",)) for name in "abcde"))
    assert allot([want("x/a", 1)], there, solve).grants["x/a"].waiting == (
        "no node has a device that it may use; a: nvidia.com/gpu: shared; b: nvidia.com/gpu: shared; "
        "c: nvidia.com/gpu: shared; and 2 more nodes with such notes"
    )


def test_an_objective_that_no_choice_meets_is_the_reason() -> None:
    request = want("x/a", 1, objective=Objective(goal=Goal.FEWEST_DEVICES, rate=1e6))
    found = allot([request], cluster(node("a", 1)), solve)
    assert "rows/s" in str(found.grants["x/a"].waiting)


def test_a_lost_node_moves_its_copy_and_no_other() -> None:
    requests = [want("x/a", 30), want("x/b", 30)]
    there = cluster(node("a", 1), node("b", 1), node("c", 1))
    first = allot(requests, there, solve)
    (gone,) = nodes_of(first, "x/a")
    left = cluster(*(dataclasses.replace(n, ready=n.name != gone) for n in there.nodes))
    left = cluster(*(n if n.ready else dataclasses.replace(n, excluded="NotReady") for n in left.nodes))
    second = allot(then(requests, first), left, solve)
    assert nodes_of(second, "x/a") == [({"a", "b", "c"} - {gone} - set(nodes_of(first, "x/b"))).pop()]
    assert used(second, "x/b") == used(first, "x/b")


def test_a_cordoned_node_keeps_what_runs_and_takes_nothing_new() -> None:
    request, there = want("x/a", 4, 4), cluster(node("a", 2))
    before = allot([request], there, solve)
    closed = cluster(dataclasses.replace(there.nodes[0], excluded="Cordoned"))
    found = allot([*then([request], before), want("x/b", 1)], closed, solve)
    assert used(found, "x/a") == used(before, "x/a")
    assert not found.grants["x/b"].plans


def test_a_gpu_that_goes_bad_costs_the_copy_that_gpu_and_not_its_place() -> None:
    request = want("x/a", 4, 4)
    before = allot([request], cluster(node("a", 2)), solve)
    found = allot(then([request], before), cluster(node("a", 1), node("b", 2)), solve)
    assert used(found, "x/a") == {("a", "gpu0")}


def test_a_copy_grows_on_its_node_when_that_is_worth_a_restart() -> None:
    request = want("x/a", 4, 4)
    before = allot([request], cluster(node("a", 1)), solve)
    assert used(allot(then([request], before), cluster(node("a", 2)), solve), "x/a") == {("a", "gpu0"), ("a", "gpu1")}
    waiting = want("x/b", 30, created="later")
    found = allot([*then([request], before), waiting], cluster(node("a", 2)), solve)
    assert used(found, "x/a") == {("a", "gpu0")}, "one that waits comes before one that could do with more"
    assert found.grants["x/b"].plans


def test_a_copy_does_not_start_anew_for_a_small_gain() -> None:
    request = want("x/a", 4, 4)
    before = allot([request], cluster(node("a", 1)), solve)
    assert used(allot(then([request], before), cluster(node("a", 1, cores=1)), solve), "x/a") == {("a", "gpu0")}
    assert len(used(allot([request], cluster(node("a", 1, cores=1)), solve), "x/a")) == 2


def test_fewer_copies_free_the_last_ones() -> None:
    request = want("x/a", 30, copies=3)
    there = cluster(*(node(n, 1) for n in "abc"))
    before = allot([request], there, solve)
    (less,) = then([request], before)
    found = allot([dataclasses.replace(less, copies=1), want("x/b", 30, copies=2)], there, solve)
    assert used(found, "x/a", 0) == used(before, "x/a", 0)
    assert sorted(found.grants["x/b"].plans) == [0, 1]


def test_what_other_pods_of_ours_hold_is_not_given() -> None:
    there = cluster(node("a", 1, cores=3))
    profiling = (*gpus("a", 1), Device("cpu0", "a", DeviceKind.CPU, "cpu-1", 4 * GIB))
    found = allot([want("x/a", 1, 1, 1)], there, solve, busy=profiling)
    assert used(found, "x/a") == {("a", "cpu1")}
    crowded = allot([want("x/a", 1, 1, 1)], cluster(node("a", 1, cores=2)), solve, busy=profiling)
    assert not crowded.grants["x/a"].plans, "the last core drives the GPU"


def test_a_dry_run_is_planned_with_what_is_left_and_takes_nothing() -> None:
    there = cluster(node("a", 2))
    dry = want("x/dry", 30, 30, dry=True, priority=9)
    found = allot([dry, want("x/b", 30), want("x/c", 30)], there, solve)
    assert found.grants["x/b"].plans
    assert found.grants["x/c"].plans
    assert "needs 2 devices of 40 GiB" in str(found.grants["x/dry"].waiting)
    assert len(used(allot([dry], there, solve), "x/dry")) == 2
    assert len(allot([dry], there, solve).free) == 2


def test_pods_need_room_besides_their_devices() -> None:
    request = want("x/a", 1, pod_millis=500, pod_bytes=GIB)
    found = allot([request], cluster(node("a", 1)), solve)
    assert found.grants["x/a"].waiting == "no node has a device that it may use; nodes refused: 1 NoRoom"
    greedy = dataclasses.replace(request, pod_millis=1000)
    for cores, served in ((3, [1, 0]), (4, [1, 1])):
        two = allot([greedy, dataclasses.replace(greedy, key="x/b")], cluster(node("a", 0, cores=cores)), solve)
        assert [len(two.grants[key].plans) for key in ("x/a", "x/b")] == served


def both(key: str, **more: Any) -> Request:
    """A member that needs a GPU, and one that needs a core."""
    members = (_on("big", 1), dataclasses.replace(_on("cpu-1", 1), name="m1"))
    return Request(key, members, 2, gpu_millis=500, gpu_beside_millis=1000, **more)


def test_a_gpu_takes_a_core_in_a_pod_that_has_cores_and_half_a_one_in_others() -> None:
    on_a_gpu = dataclasses.replace(both("x/gpu"), members=(_on("big", 1),), most=1)
    on_a_core = dataclasses.replace(both("x/core"), members=(_on("cpu-1", 1),), most=1)
    for cores, first, expected in (
        (1, both("x/both"), {"x/core"}),
        (2, both("x/both"), {"x/both"}),
        (3, both("x/both"), {"x/both", "x/core"}),
        (1, on_a_gpu, {"x/gpu"}),
        (2, on_a_gpu, {"x/gpu", "x/core"}),
    ):
        there = cluster(node("a", 1, cores=cores))
        found = allot([dataclasses.replace(first, priority=1), on_a_core], there, solve)
        assert {key for key, grant in found.grants.items() if grant.plans} == expected, cores
    (grant,) = allot([both("x/both")], cluster(node("a", 1, cores=1)), solve).grants.values()
    assert "each GPU takes a core besides" in str(grant.waiting)


def test_a_copy_that_runs_gets_a_core_only_where_its_gpu_keeps_one() -> None:
    quick = dataclasses.replace(both("x/a"), members=(member("m0", 1), member("m1", 1)), most=2)
    for cores, more in ((1, 0), (2, 1)):
        there = cluster(node("a", 1, cores=cores))
        running = holding(quick, {0: solved(quick, gpus("a", 1), {}, solve).plan})
        found = allot([running], there, solve)
        assert sum(name.startswith("cpu") for _, name in used(found, "x/a")) <= more


def test_a_node_gives_away_its_last_core() -> None:
    request = want("x/a", 4, 4, types=("cpu-1",), pod_bytes=GIB)
    found = allot([request], cluster(node("a", 0, cores=2)), solve)
    assert used(found, "x/a") == {("a", "cpu0"), ("a", "cpu1")}


def test_strict_pinning_takes_only_devices_that_can_be_asked_for() -> None:
    named = Node("b", True, devices=(Device("gpu-0", "b", DeviceKind.GPU, "big", 40 * GIB, uuid="GPU-1"),))
    there = cluster(node("a", 4), named)
    found = allot([want("x/a", 4, 4, terms=Terms(pinned=True))], there, solve)
    assert used(found, "x/a") == {("b", "gpu-0")}


def test_the_catalogue_names_each_kind_once_whoever_holds_it() -> None:
    there = cluster(
        node("a", 2, cores=4), node("b", 2), node("c", 1, "small", 16), node("d", 1, "x", excluded="Cordoned")
    )
    assert [(d.type, d.node) for d in catalogue(there, Terms())] == [("cpu-1", "a"), ("big", "a"), ("small", "c")]
    assert [d.type for d in catalogue(there, Terms(kinds=frozenset({DeviceKind.GPU})))] == ["big", "small"]


@pytest.mark.parametrize("cores", [1, 2])
def test_cores_are_not_given_twice(cores: int) -> None:
    there = cluster(node("a", cores=4))
    requests = [want(f"x/{i}", 1, types=["cpu-1"]) for i in range(3)]
    other = dataclasses.replace(
        want("x/wide", 1), terms=Terms(cores_per_device=cores), members=(_on(f"cpu-{cores}", 1),), priority=1
    )
    found = allot([*requests, other], there, solve)
    assert found.grants["x/wide"].plans
    assert sum(bool(found.grants[r.key].plans) for r in requests) == 4 - cores if cores == 2 else 3
    names = [d for r in (*requests, other) for i in found.grants[r.key].plans for d in used(found, r.key, i)]
    assert len(names) == len(set(names))


def _small(name: str) -> Device:
    return Device("slow0", name, DeviceKind.GPU, "small", 16 * GIB)


def _on(type_: str, gib: float) -> PlanMember:
    return PlanMember("m0", {type_: Profile("m0", type_, "FP32", (Point(1, 0.1, int(gib * GIB)),))})
