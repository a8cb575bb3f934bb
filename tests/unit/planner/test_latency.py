"""The simulation against what is known in closed form, and the queueing model against the simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ensemble_operator.planner.instance import build
from ensemble_operator.planner.latency import quantile
from ensemble_operator.planner.pipeline import Cell, Pipeline, pipeline
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.score import score
from ensemble_operator.planner.simulate import poisson, saturated
from ensemble_operator.planner.solve import make_plan

Spec = list[tuple[int, int, int, float, float, float]]


def line(spec: Spec) -> Pipeline:
    """Cells from (device, member, batch limit, share, seconds of a batch, seconds of each row in it)."""
    cells = tuple(
        Cell(d, m, limit, share, np.concatenate([[setup], setup + row * np.arange(1, limit + 1)]))
        for d, m, limit, share, setup, row in spec
    )
    return Pipeline(cells, 1 + max(c.device for c in cells), 1 + max(c.member for c in cells))


ONE = line([(0, 0, 32, 1, 0.01, 0.001)])
PAIR = line([(d, 0, 32, 0.5, 0.01, 0.001) for d in (0, 1)])
STACK = line([(0, m, 32, 1, 0.01, 0.001) for m in range(4)])


def test_an_idle_pipeline_takes_as_long_as_its_slowest_member() -> None:
    three = line([(0, 0, 8, 1, 0.01, 0), (1, 1, 8, 1, 0.03, 0), (2, 2, 8, 1, 0.02, 0)])
    assert poisson(three, rate=0.01, request_rows=1, requests=200).quantile(0.5) == pytest.approx(0.03)
    assert quantile(three, rate=0.01, request_rows=1, part=0.5) == pytest.approx(0.03, rel=0.01)


def test_co_located_members_take_turns() -> None:
    assert poisson(STACK, rate=0.01, request_rows=1, requests=200).quantile(0.5) == pytest.approx(4 * 0.011)


def test_requests_larger_than_a_batch_take_several() -> None:
    assert poisson(ONE, rate=0.01, request_rows=64, requests=50).quantile(0.5) == pytest.approx(2 * 0.042)
    assert quantile(ONE, rate=0.01, request_rows=64, part=0.5) == pytest.approx(2 * 0.042, rel=0.03)


def test_matches_the_mean_of_a_queue_with_constant_service() -> None:
    # M/D/1 at load 0.5: mean wait = load * service / (2 * (1 - load)).
    single = line([(0, 0, 1, 1, 0.01, 0)])
    played = poisson(single, rate=50, request_rows=1, requests=40_000)
    assert float(played.latencies.mean()) == pytest.approx(0.01 + 0.5 * 0.01 / (2 * 0.5), rel=0.03)


def test_saturation_reaches_full_batches() -> None:
    assert saturated(ONE, clients=200, request_rows=1, requests=20_000).rate == pytest.approx(32 / 0.042, rel=0.01)


@pytest.mark.parametrize("shape", [ONE, STACK], ids=["one", "stack"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_the_model_is_near_the_simulation_on_one_device(shape: Pipeline, rows: int, load: float) -> None:
    rate = load * 32 / (0.042 * shape.members)
    played = poisson(shape, rate=rate, request_rows=rows, requests=8_000)
    assert quantile(shape, rate=rate, request_rows=rows) == pytest.approx(played.quantile(0.99), rel=0.35)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_the_model_is_near_the_simulation_on_two(load: float) -> None:
    rate = load * 64 / 0.042
    played = poisson(PAIR, rate=rate, request_rows=1, requests=8_000)
    assert quantile(PAIR, rate=rate, request_rows=1) == pytest.approx(played.quantile(0.99), rel=0.3)


def test_latency_grows_with_load_and_has_an_end() -> None:
    times = [quantile(STACK, rate=load * 190, request_rows=1) for load in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)]
    assert times == sorted(times)
    assert math.isinf(times[-1])


@pytest.mark.parametrize("seed", range(6))
def test_cells_that_pull_freely_reach_the_predicted_rate(draw: Callable[..., Problem], seed: int) -> None:
    plan = make_plan(draw(seed, max_devices=6), evaluations=200)
    instance = build(plan.problem, every_batch=True)
    found = score(instance, instance.matrix(plan.matrix))
    drawn = pipeline(instance, found.matrix, found.steady)
    played = saturated(drawn, clients=512, request_rows=16, requests=12_000)
    assert played.rate == pytest.approx(plan.rate, rel=0.06)
