"""What runs, judged as a plan."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ensemble_operator.planner.given import given_plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import ManifestError


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_that_runs_is_the_plan_that_was_made(draw: Callable[..., Problem], seed: int) -> None:
    problem = draw(seed, max_devices=6, max_members=4)
    plan = make_plan(problem, evaluations=100)
    again = given_plan(problem, {(d.node, d.name, member): batch for d, member, batch in plan.cells})
    assert again.matrix == plan.matrix
    assert again.rate == pytest.approx(plan.rate)
    assert again.bottleneck == plan.bottleneck


def test_cells_that_nothing_is_known_of_are_told(draw: Callable[..., Problem]) -> None:
    problem = draw(0, max_devices=4, max_members=3)
    cells = {(d.node, d.name, m): b for d, m, b in make_plan(problem, evaluations=50).cells}
    one = next(iter(cells))
    for key, size in ((one, 7777), (("elsewhere", *one[1:]), cells[one])):
        with pytest.raises(ManifestError, match="has no profile here"):
            given_plan(problem, {**cells, key: size})
    gone = {key: size for key, size in cells.items() if key[2] != one[2]}
    with pytest.raises(ManifestError, match=one[2]):
        given_plan(problem, gone)
