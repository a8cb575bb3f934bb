from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.api.objective import Goal, Objective
from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.pairs import pair_of, pair_types
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import candidates, make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import OutOfMemoryError

MIB = 2**20
PAIR = "A100:cpu-1"


def gpu(index: int, mib: int = 1000, node: str = "n") -> Device:
    return Device(f"gpu{index}", node, DeviceKind.GPU, "A100", mib * MIB)


def cores(index: int, mib: int = 4000, node: str = "n") -> Device:
    return Device(f"cpu{index}", node, DeviceKind.CPU, "cpu-1", mib * MIB, cores=(index,))


def profile(type_: str, seconds: float, mib: int, second_mib: int = 0) -> Profile:
    return Profile("a" * 64, type_, "FP32", (Point(1, seconds, mib * MIB, second_mib * MIB),))


def member(
    name: str, *, whole: tuple[float, int] | None = (0.01, 600), pair: tuple[float, int, int] | None = None
) -> PlanMember:
    """Seconds and MiB on the GPU, and on the pair; nothing runs on cores alone."""
    return PlanMember(
        name,
        {"A100": profile("A100", *whole)} if whole else {},
        {PAIR: profile(PAIR, *pair)} if pair else {},
    )


def split_cells(plan: Plan) -> list[tuple[str, str]]:
    companions = plan.problem.companions
    return [(d.name, m) for d, m, _ in plan.cells if (d.node, d.name) in companions and m in plan.problem.split]


def test_an_ensemble_that_does_not_fit_its_gpu_fits_by_moving_operators_to_cores() -> None:
    one, other = member("one"), member("other", pair=(0.015, 150, 450))
    whole = Problem((gpu(0), cores(0)), (one, replace(other, pairs={})))
    with pytest.raises(OutOfMemoryError):
        make_plan(whole)
    plan = make_plan(replace(whole, members=(one, other)))
    assert split_cells(plan) == [("gpu0", "other")]
    assert plan.rate == pytest.approx(1 / 0.025)
    assert plan.problem.companions == {("n", "gpu0"): cores(0)}


def test_whole_cells_win_where_they_fit_and_are_faster() -> None:
    members = (member("one"), member("other", pair=(0.015, 150, 450)))
    plan = make_plan(Problem((gpu(0), gpu(1), cores(0), cores(1)), members))
    assert split_cells(plan) == []
    assert not plan.problem.companions
    assert plan.rate == pytest.approx(100)


def test_a_partition_that_is_faster_wins_although_the_whole_fits() -> None:
    plan = make_plan(Problem((gpu(0), cores(0)), (member("one", pair=(0.006, 400, 200)),)))
    assert split_cells(plan) == [("gpu0", "one")]
    assert plan.rate == pytest.approx(1 / 0.006)


def test_no_more_members_are_split_than_is_worth_it() -> None:
    # Two of three have to give way for the third; who is split is slower.
    members = tuple(member(name, whole=(0.01, 400), pair=(0.02, 150, 250)) for name in ("a", "b", "c"))
    plan = make_plan(Problem((gpu(0), cores(0)), members))
    assert len(split_cells(plan)) == 1
    assert plan.rate == pytest.approx(1 / 0.04)


def test_cores_that_cannot_hold_their_part_are_no_way_out() -> None:
    members = (member("one"), member("other", pair=(0.015, 150, 450)))
    with pytest.raises(OutOfMemoryError, match="do not fit"):
        make_plan(Problem((gpu(0), cores(0, mib=300)), members))


def test_cores_are_of_one_pair_only_and_of_the_same_node() -> None:
    devices = (gpu(0), gpu(1), cores(0), gpu(0, node="m"), cores(0, node="m"))
    plan = make_plan(Problem(devices, (member("one", whole=None, pair=(0.01, 100, 100)),)))
    assert plan.problem.companions == {("n", "gpu0"): cores(0), ("m", "gpu0"): cores(0, node="m")}
    assert sorted((d.node, d.name) for d, _, _ in plan.cells) == [("m", "gpu0"), ("n", "gpu0")]
    assert not any(d.kind is DeviceKind.CPU for d in plan.problem.devices)


def test_two_sets_of_cores_make_a_pair_where_there_is_nothing_else() -> None:
    both = (cores(0), cores(1), cores(2))
    assert pair_types(both) == ("cpu-1:cpu-1",)
    assert pair_of(both, "cpu-1:cpu-1") == (cores(0), cores(1))
    assert pair_types((gpu(0), *both)) == (PAIR,)
    assert pair_types((gpu(0),)) == ()


def test_latency_takes_the_pair_that_is_quicker() -> None:
    objective = Objective(goal=Goal.LATENCY, rate=10)
    plan = make_plan(Problem((gpu(0), cores(0)), (member("one", pair=(0.006, 400, 200)),), objective))
    assert split_cells(plan) == [("gpu0", "one")]
    assert plan.p99_seconds is not None and plan.p99_seconds < 0.012


def test_candidates_are_of_both_kinds_the_best_first() -> None:
    plans = candidates(Problem((gpu(0), cores(0)), (member("one", pair=(0.006, 400, 200)),)), 3)
    assert [bool(plan.problem.companions) for plan in plans] == [True, False]
    assert plans[0].rate > plans[1].rate
    assert all(plan.rate <= plan.bound for plan in plans)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(50, 900), st.floats(0.001, 0.1), st.floats(0.3, 3.0), st.integers(0, 100), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_permission_to_split_never_makes_a_plan_worse_and_memory_holds(
    drawn: list[tuple[int, float, float, int, bool]], gpus: int, core_sets: int
) -> None:
    members = tuple(
        member(f"m{i}", whole=(seconds, mib), pair=(seconds * slower, mib * share // 100, 300) if able else None)
        for i, (mib, seconds, slower, share, able) in enumerate(drawn)
    )
    problem = Problem((*map(gpu, range(gpus)), *map(cores, range(core_sets))), members)
    try:
        alone = make_plan(replace(problem, members=tuple(replace(m, pairs={}) for m in members))).rate
    except OutOfMemoryError:
        alone = 0.0
    try:
        plan = make_plan(problem)
    except OutOfMemoryError:
        assert alone == 0.0
        return
    assert plan.rate >= alone * (1 - 1e-9)
    at = {m.name: m for m in plan.problem.members}
    for device in plan.problem.devices:
        held = [at[name].profiles[d.type].at(size) for d, name, size in plan.cells if d == device]
        assert sum(point.memory_bytes for point in held if point) <= device.memory_bytes
    for key, second in plan.problem.companions.items():
        used = [
            at[m].profiles[d.type].at(b)
            for d, m, b in plan.cells
            if (d.node, d.name) == key and m in plan.problem.split
        ]
        assert sum(point.second_bytes for point in used if point) <= second.memory_bytes
