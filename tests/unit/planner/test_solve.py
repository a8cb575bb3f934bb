from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import candidates, make_plan
from ensemble_runtime.errors import OutOfMemoryError

Draw = Callable[..., Problem]
seeds = st.integers(0, 10**6)


def plan_or_skip(problem: Problem, **how: int) -> Plan:
    try:
        return make_plan(problem, **how)
    except OutOfMemoryError:
        assume(False)
        raise


def memory_used(plan: Plan) -> list[int]:
    return [
        sum(
            point.memory_bytes
            for member, batch in zip(plan.problem.members, row, strict=True)
            if batch and (point := member.profiles[device.type].at(batch))
        )
        for device, row in zip(plan.problem.devices, plan.matrix, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_every_plan_keeps_its_promises(draw: Draw, seed: int) -> None:
    plan = plan_or_skip(draw(seed, max_devices=5, max_members=6), evaluations=200)
    assert all(used <= d.memory_bytes for used, d in zip(memory_used(plan), plan.problem.devices, strict=True))
    assert all(any(row[m] for row in plan.matrix) for m in range(len(plan.problem.members)))
    assert plan.baseline_rate * (1 - 1e-9) <= plan.rate <= plan.bound * (1 + 1e-9)
    shares = np.array(plan.shares)
    assert (shares.sum(axis=1) <= 1 + 1e-6).all()
    # The time shares that the plan prints do bring the rate that it prints.
    for m, member in enumerate(plan.problem.members):
        served = 0.0
        for d, device in enumerate(plan.problem.devices):
            if point := member.profiles[device.type].at(plan.matrix[d][m]):
                served += shares[d, m] * point.batch_size / point.seconds
        assert served >= plan.rate * (1 - 1e-6)


@settings(max_examples=10, deadline=None)
@given(seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_lists_plays_no_part(draw: Draw, seed: int, random) -> None:
    problem = draw(seed, max_devices=5, max_members=5)
    plan = plan_or_skip(problem, evaluations=100)
    devices, members = list(problem.devices), list(problem.members)
    random.shuffle(devices)
    random.shuffle(members)
    shuffled = make_plan(dataclasses.replace(problem, devices=tuple(devices), members=tuple(members)), evaluations=100)
    assert shuffled.digest == plan.digest
    assert shuffled.rate == plan.rate


def test_the_same_input_gives_the_same_bytes(draw: Draw) -> None:
    one, other = make_plan(draw(0), evaluations=200), make_plan(draw(0), evaluations=200)
    assert one.canonical_json() == other.canonical_json()


@settings(max_examples=4, deadline=None)
@given(seeds)
def test_more_devices_or_memory_never_hurt(draw: Draw, seed: int) -> None:
    problem = draw(seed, max_devices=3, max_members=4)
    rate = plan_or_skip(problem, evaluations=50, exact_nodes=300).rate
    more = dataclasses.replace(problem.devices[0], name="more")
    larger = tuple(dataclasses.replace(d, memory_bytes=d.memory_bytes * 3 // 2) for d in problem.devices)
    for devices in ((*problem.devices, more), larger):
        richer = dataclasses.replace(problem, devices=devices)
        assert make_plan(richer, evaluations=50, exact_nodes=300).rate >= rate * 0.999


@pytest.mark.parametrize("seed", range(20))
def test_is_within_one_percent_of_the_optimum(draw: Draw, seed: int) -> None:
    problem = draw(seed, max_devices=4, max_members=4)
    try:
        found = make_plan(problem, evaluations=500)
    except OutOfMemoryError as error:
        assert "short of" in str(error)
        return
    best = make_plan(problem, evaluations=1, exact_nodes=300)
    assert found.rate >= 0.99 * best.rate


def test_stops_when_told_and_keeps_the_best_so_far(draw: Draw) -> None:
    problem = draw(4)
    told: list[int] = []

    def stop() -> bool:
        told.append(1)
        return len(told) > 5

    plan = make_plan(problem, stop=stop)
    assert plan.rate >= plan.baseline_rate
    assert len(told) < 60


def test_progress_never_goes_back(draw: Draw) -> None:
    rates: list[float] = []
    plan = make_plan(draw(1), evaluations=500, progress=lambda p: rates.append(p.rate))
    assert rates == sorted(rates)
    assert plan.rate >= rates[-1] * (1 - 1e-9)


def test_candidates_differ_and_come_best_first(draw: Draw) -> None:
    plans = candidates(draw(0), 3, evaluations=600)
    assert len({p.digest for p in plans}) == len(plans) == 3
    assert [p.rate for p in plans] == sorted((p.rate for p in plans), reverse=True)
