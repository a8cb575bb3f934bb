"""Plans that start from a running one, nodes that cost, and members that disturb each other."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan as plan_in_full
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind


def make_plan(problem: Problem) -> Plan:
    return plan_in_full(problem, evaluations=300)


def running(plan: Plan) -> dict[tuple[str, str, str], int]:
    return {(device.node, device.name, member): batch for device, member, batch in plan.cells}


def moved(before: Plan, after: Plan) -> int:
    """Cells of the later plan that were not there, or had another batch size."""
    return len(set(running(after).items()) - set(running(before).items()))


@pytest.fixture(scope="module")
def cluster(cases: ModuleType) -> Problem:
    random = np.random.default_rng(5)
    there = cases.devices(["fast-40g"] * 6, per_node=2)
    return Problem(there, cases.members(random, [6.0] * 5))


def test_nothing_moves_when_nothing_changed(cluster: Problem) -> None:
    plan = make_plan(cluster)
    again = make_plan(dataclasses.replace(cluster, running=running(plan)))
    assert again.digest == plan.digest


def test_a_lost_device_moves_few_cells(cluster: Problem) -> None:
    plan = make_plan(cluster)
    rest = dataclasses.replace(cluster, devices=cluster.devices[:-1])
    cold = make_plan(rest)
    warm = make_plan(dataclasses.replace(rest, running=running(plan)))
    frozen = make_plan(dataclasses.replace(rest, running=running(plan), move_cost=1.0))
    assert moved(plan, frozen) <= moved(plan, warm) <= moved(plan, cold)
    # A member that lost its only cell must get another one; nothing else has to move.
    lost = {m for d, m, _ in plan.cells if d == cluster.devices[-1]}
    kept = {m for d, m, _ in plan.cells if d != cluster.devices[-1]}
    assert moved(plan, frozen) == len(lost - kept)
    assert warm.rate >= cold.rate * (1 - cluster.move_cost) ** moved(plan, cold)


def test_an_added_device_leaves_the_others_alone_if_moves_are_dear(cluster: Problem) -> None:
    plan = make_plan(dataclasses.replace(cluster, devices=cluster.devices[:-1]))
    warm = make_plan(dataclasses.replace(cluster, running=running(plan), move_cost=1.0))
    assert moved(plan, warm) == 0
    eager = make_plan(dataclasses.replace(cluster, running=running(plan), move_cost=0.0))
    assert eager.rate > warm.rate


def test_dear_nodes_are_not_crossed_to(cluster: Problem) -> None:
    nodes = [
        len({device.node for device, _, _ in make_plan(dataclasses.replace(cluster, node_cost=cost)).cells})
        for cost in (0.0, 1.0)
    ]
    assert nodes == [3, 1]


def two_and_two(factor: float) -> Problem:
    """Two members, two devices; each member is equally fast everywhere, alone or not."""
    devices = tuple(Device(f"d{i}", "n", DeviceKind.GPU, "t", 2**30) for i in range(2))
    profile = Profile("x", "t", "FP32", (Point(8, 0.08, 2**20),))
    members = tuple(PlanMember(name, {"t": profile}) for name in ("a", "b"))
    return Problem(devices, members, interference={("t", "a", "b"): factor})


def test_members_that_disturb_each_other_are_kept_apart() -> None:
    plan = make_plan(two_and_two(0.8))
    assert plan.rate == pytest.approx(100)
    assert all(sum(b > 0 for b in row) == 1 for row in plan.matrix)


def test_members_that_overlap_well_are_put_together() -> None:
    plan = make_plan(two_and_two(1.6))
    assert plan.rate == pytest.approx(160)
    assert all(all(row) for row in plan.matrix)
    assert plan.bound >= plan.rate
