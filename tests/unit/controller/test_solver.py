import dataclasses
import time

import pytest

from ensemble_operator.controller.solver import Solver
from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import OutOfMemoryError

GIB = 2**30


def gpu(name, node="a", memory=16 * GIB, kind="T4"):
    return Device(name, node, DeviceKind.GPU, kind, memory)


def member(name, seconds, memory=4 * GIB, kind="T4"):
    points = tuple(Point(size, seconds * size**0.5, memory) for size in (1, 8))
    return PlanMember(name, {kind: Profile("0" * 64, kind, "FP32", points)})


def problem(*names, node="a", members=("x", "y"), memory=4 * GIB):
    plan_members = tuple(member(name, 0.01 * (i + 1), memory) for i, name in enumerate(members))
    return Problem(tuple(gpu(name, node) for name in names), plan_members)


def solver(seconds=30.0):
    made = Solver()
    made.until = time.monotonic() + seconds
    return made


def test_the_answer_is_the_planners_with_the_names_of_the_question():
    question = problem("gpu0", "gpu1", "gpu2")
    plan, straight = solver()(question), make_plan(question)

    assert plan.problem is question
    assert (plan.matrix, plan.rate) == (straight.matrix, straight.rate)
    assert plan.bottleneck in {"gpu0", "gpu1", "gpu2"} and plan.bottleneck_member in {"x", "y"}


def test_like_questions_are_answered_alike_and_searched_for_once(monkeypatch):
    asked = []

    def counted(question, **rest):
        asked.append(question)
        return make_plan(question, **rest)

    monkeypatch.setattr("ensemble_operator.controller.solver.make_plan", counted)
    solve = solver()
    first = solve(problem("gpu0", "gpu1"))
    second = solve(problem("gpu4", "gpu7", node="b", members=("u", "v")))

    assert len(asked) == 1
    assert first.matrix == second.matrix
    assert {(d.node, d.name) for d, _, _ in second.cells} <= {("b", "gpu4"), ("b", "gpu7")}
    assert {name for _, name, _ in second.cells} == {"u", "v"}


def test_what_runs_is_part_of_the_question():
    question = problem("gpu0", "gpu1")
    solve = solver()
    cold = solve(question)
    running = {("a", "gpu1", "x"): 8, ("a", "gpu0", "y"): 8}
    warm = solve(dataclasses.replace(question, running=running))

    assert {(d.name, m) for d, m, _ in warm.cells} >= {("gpu1", "x"), ("gpu0", "y")}
    assert cold.problem.running != warm.problem.running


def test_a_refusal_is_remembered_too():
    solve, question = solver(), problem("gpu0", memory=40 * GIB)

    for _ in range(2):
        with pytest.raises(OutOfMemoryError):
            solve(question)


def test_out_of_time_the_first_plan_will_do_and_is_not_kept():
    solve, question = solver(0.0), problem("gpu0", "gpu1", "gpu2")
    hurried = solve(question)
    solve.until = time.monotonic() + 30

    assert hurried.cells
    assert solve(problem("gpu0", "gpu1", "gpu2")).rate == make_plan(question).rate


def test_pairs_are_planned_once_and_named_as_the_question_names_them(monkeypatch):
    """The rows of such a plan are pairs, so that its problem is not the question's own."""
    pair = "T4:cpu-1"

    def partitioned(node, first, second):
        points = (Point(1, 0.01, GIB, GIB),)
        member = PlanMember("x", {}, {pair: Profile("0" * 64, pair, "FP32", points)})
        cores = Device(second, node, DeviceKind.CPU, "cpu-1", 4 * GIB)
        return Problem((cores, gpu(first, node)), (member,))

    solve = solver()
    one = solve(partitioned("a", "gpu0", "cpu0"))
    monkeypatch.setattr("ensemble_operator.controller.solver.make_plan", None)
    other = solve(partitioned("b", "gpu7", "cpu3"))

    assert [(d.name, d.type) for d in one.devices] == [("gpu0", "T4"), ("cpu0", "cpu-1")]
    assert [(d.node, d.name) for d in other.devices] == [("b", "gpu7"), ("b", "cpu3")]
    assert other.second(other.cells[0][0], "x").name == "cpu3"
    assert one.digest != other.digest
