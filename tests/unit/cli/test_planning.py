"""Ctrl-C while a plan is searched for, and plans as tables."""

from __future__ import annotations

import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.cli.planning import best_plans, noting_interrupts, plan_table
from ensemble_operator.inventory.simulated import simulated_devices
from ensemble_operator.manifests.question import question
from ensemble_operator.planner.problem import Problem
from ensemble_operator.profiles.table import written


@pytest.fixture
def problem(manifest: Path) -> Problem:
    read = load_manifest(manifest.read_text(), folder="/")
    devices = simulated_devices(read.ensemble.spec.devices.simulated)
    return question(read.ensemble.spec, {"big": "a" * 64, "small": "b" * 64}, devices, written(read.profiles))


def test_the_first_ctrl_c_is_noted_the_second_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with noting_interrupts() as came:
        assert not came()
        signal.raise_signal(signal.SIGINT)
        assert came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "the best plan so far counts" in capsys.readouterr().err


def test_several_plans_come_best_first_and_differ(problem: Problem) -> None:
    plans = best_plans(problem, 3)
    assert len({plan.matrix for plan in plans}) == len(plans) > 1
    assert [plan.rate for plan in plans] == sorted((plan.rate for plan in plans), reverse=True)


def test_without_time_to_search_a_plan_is_less_good_but_serves_everybody(draw: Callable[..., Problem]) -> None:
    problem = draw(0, max_devices=8, max_members=12)
    (searched,), (found,) = best_plans(problem), best_plans(problem, seconds=0)
    assert 0 < found.rate < searched.rate
    assert all(any(batches) for batches in zip(*found.matrix, strict=True))


@pytest.mark.parametrize("width", [40, 200])
def test_a_table_says_who_runs_where_on_any_terminal(problem: Problem, width: int) -> None:
    (plan,) = best_plans(problem)
    text = StringIO()
    Console(file=text, width=width).print(plan_table(plan, measured=320))
    words = text.getvalue().split()
    for word in ("sim0", "sim3", "big", "small", "640", "320", "50%", "3.20x"):
        assert word in words
