from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.instance import build
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.throughput import Steady, solve, steady
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind


def general_solver(device, member, cost, share, count, members) -> float:
    """The same linear program, as scipy solves it."""
    cells, groups = len(device), len(share)
    time = np.zeros((groups, cells + 1))
    np.add.at(time, (device, np.arange(cells)), cost)
    time[:, -1] = -share
    own = np.hstack([np.diag(cost), -count[device][:, None]])
    whole = np.zeros((members, cells + 1))
    whole[member, np.arange(cells)] = 1
    result = linprog(
        [0.0] * cells + [1.0],
        A_ub=np.vstack([time, own]),
        b_ub=np.zeros(groups + cells),
        A_eq=whole,
        b_eq=np.ones(members),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return float(result.fun)


def random_cells(seed: int):
    random = np.random.default_rng(seed)
    devices, members = random.integers(1, 17), int(random.integers(1, 13))
    there = random.random((devices, members)) < random.random()
    there[random.integers(0, devices, members), np.arange(members)] = True
    device, member = np.nonzero(there)
    cost = 10 ** random.uniform(-5, 0, len(device))
    if random.random() < 0.3:  # ties and like devices: where a simplex could cycle
        cost = np.round(cost * 3 + 1)
    count = random.integers(1, 4, devices).astype(float)
    share = np.where(random.random(devices) < 0.4, random.uniform(0.8, 1.9, devices), 1.0) * count
    return device, member, cost, share, count, members


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_a_general_solver(seed: int) -> None:
    cells = random_cells(seed)
    assert solve(*cells).seconds == pytest.approx(general_solver(*cells), rel=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_the_solution_is_feasible_and_its_prices_prove_it_optimal(seed: int) -> None:
    device, member, cost, share, count, members = random_cells(seed)
    found = solve(device, member, cost, share, count, members)
    assert np.bincount(member, weights=found.work) == pytest.approx(np.ones(members))
    assert (np.bincount(device, weights=found.busy, minlength=len(share)) <= share + 1e-6).all()
    assert (found.busy <= count[device] + 1e-6).all() and (found.work >= 0).all()
    assert found.member_price.sum() == pytest.approx(found.seconds, rel=1e-6)


def one(cost, device, member, devices) -> Steady:
    ones = np.ones(devices)
    return solve(np.array(device), np.array(member), np.array(cost), ones, ones, max(member) + 1)


def test_a_lone_member_adds_up_the_rates_of_its_devices() -> None:
    assert one([0.01, 0.02], [0, 1], [0, 0], 2).rate == pytest.approx(100 + 50)


def test_co_located_members_share_the_time() -> None:
    found = one([0.01, 0.03], [0, 0], [0, 1], 1)
    assert found.rate == pytest.approx(25)
    assert found.busy == pytest.approx([0.25, 0.75])


def test_the_slowest_member_sets_the_rate_and_has_the_price() -> None:
    found = one([0.01, 0.05], [0, 1], [0, 1], 2)
    assert found.rate == pytest.approx(20)
    assert found.device_price == pytest.approx([0, 1])


SECONDS = {1: 0.02, 4: 0.05, 16: 0.16}
"""Of a batch on one core, of each member; pairs are measured at 4 rows."""


def beside_each_other(factor: float, *batches: int, devices: int = 1, kind: DeviceKind = DeviceKind.CPU) -> Steady:
    """Members a, b, ... on each of some cores, at these batch sizes."""
    names = "abc"[: len(batches)]
    profile = Profile("x", "cpu-1", "FP32", tuple(Point(size, seconds, 1) for size, seconds in SECONDS.items()))
    problem = Problem(
        tuple(Device(f"d{i}", "n", kind, "cpu-1", 2**30) for i in range(devices)),
        tuple(PlanMember(name, {"cpu-1": profile}) for name in names),
        interference={("cpu-1", a, b): factor for a, b in combinations(names, 2)},
    )
    instance = build(problem, every_batch=True)
    return steady(instance, instance.matrix([batches] * devices))


@pytest.mark.parametrize("devices", [1, 40])
def test_a_pair_on_a_core_loses_what_was_measured_at_the_sizes_where_it_was(devices: int) -> None:
    assert beside_each_other(0.8, 4, 4, devices=devices).rate == pytest.approx(devices * 0.8 * 4 / (2 * 0.05))


def test_on_a_core_a_change_costs_the_same_time_at_any_batch_size() -> None:
    change = 2 * 0.05 * (1 / 0.8 - 1) / 2  # seconds that each batch loses
    for size, seconds in SECONDS.items():
        assert beside_each_other(0.8, size, size).seconds == pytest.approx(2 * (seconds + change) / size)
    mixed = beside_each_other(0.8, 1, 16).seconds
    assert mixed == pytest.approx(SECONDS[1] + change + (SECONDS[16] + change) / 16)


def test_three_on_a_core_lose_no_more_a_batch_than_two() -> None:
    assert beside_each_other(0.8, 4, 4, 4).rate == pytest.approx(0.8 * 4 / (3 * 0.05))


def test_one_alone_on_a_core_loses_nothing() -> None:
    assert beside_each_other(0.8, 4).rate == pytest.approx(4 / 0.05)


@pytest.mark.parametrize(("factor", "kind"), [(0.8, DeviceKind.GPU), (1.25, DeviceKind.GPU), (1.25, DeviceKind.CPU)])
def test_what_overlaps_or_gains_does_so_in_proportion(factor: float, kind: DeviceKind) -> None:
    for size, seconds in SECONDS.items():
        expected = factor * size / (2 * seconds)
        assert beside_each_other(factor, size, size, kind=kind).rate == pytest.approx(expected)
