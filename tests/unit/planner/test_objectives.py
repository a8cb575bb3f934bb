from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from ensemble_operator.api.objective import Goal, Objective
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import EnsembleError

Draw = Callable[..., Problem]


def planned(problem: Problem, **objective: object) -> Plan:
    return make_plan(dataclasses.replace(problem, objective=Objective(**objective)), evaluations=90)


@pytest.fixture(scope="module")
def problem(draw: Draw) -> Problem:
    return draw(11)


@pytest.fixture(scope="module")
def fastest(problem: Problem) -> Plan:
    return make_plan(problem)


def test_less_load_means_less_latency(problem: Problem, fastest: Plan) -> None:
    calm = planned(problem, goal=Goal.LATENCY, rate=0.2 * fastest.rate)
    busy = planned(problem, goal=Goal.LATENCY, rate=0.7 * fastest.rate)
    assert calm.p99_seconds and busy.p99_seconds
    assert calm.p99_seconds < busy.p99_seconds


def test_goodput_keeps_the_limit_and_grows_with_it(problem: Problem, fastest: Plan) -> None:
    strict = planned(problem, goal=Goal.GOODPUT, p99_ms=150)
    lenient = planned(problem, goal=Goal.GOODPUT, p99_ms=1000)
    for plan, limit in ((strict, 0.15), (lenient, 1.0)):
        assert plan.goodput and plan.p99_seconds
        assert plan.p99_seconds <= limit
        assert plan.goodput <= plan.rate <= fastest.bound
    assert strict.goodput < lenient.goodput


def test_takes_the_fewest_devices_that_carry_the_rate(draw: Draw) -> None:
    problem = draw(2)
    whole = make_plan(problem)
    some = planned(problem, goal=Goal.FEWEST_DEVICES, rate=0.5 * whole.rate)
    used = {device.name for device, _, _ in some.cells}
    assert some.rate >= 0.5 * whole.rate
    assert some.fewest_devices is not None
    assert some.fewest_devices <= len(used) < len(problem.devices)


def test_fewest_devices_keep_the_limit_too(problem: Problem) -> None:
    plan = planned(problem, goal=Goal.FEWEST_DEVICES, rate=40.0, p99_ms=400)
    assert plan.p99_seconds is not None
    assert plan.p99_seconds <= 0.4


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        ({"goal": Goal.LATENCY, "rate": 1e6}, "objective.rate"),
        ({"goal": Goal.GOODPUT, "p99_ms": 0.001}, "objective.p99Ms"),
        ({"goal": Goal.FEWEST_DEVICES, "rate": 1e6}, "carries 1e.06 rows/s"),
    ],
)
def test_says_what_cannot_be(problem: Problem, objective: dict[str, object], field: str) -> None:
    with pytest.raises(EnsembleError, match=field):
        planned(problem, **objective)
