from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.coarsening import coarse, merged
from ensemble_runtime.partition.exact import CLOSE, MAX_TASKS, fewest_bytes, prove_bytes, prove_makespan
from ensemble_runtime.partition.instance import Flow, Instance, Link, Task
from ensemble_runtime.partition.ordering import orders, scheduled
from ensemble_runtime.partition.schedule import NoScheduleError, curve, least_bytes, least_makespan
from ensemble_runtime.partition.timeline import Schedule, times

Draw = Callable[..., Instance]
seeds = st.integers(0, 10_000)
LATENCY_SEEDS, MEMORY_SEEDS = 4, 2
"""Graphs of chance of each size up to the largest that is proven; `benchmarks/partition_planning.py` has more."""


def _cases() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "partition_cases.py"
    spec = importlib.util.spec_from_file_location("partition_cases", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = _cases()
chance: Draw = CASES.chance
stacked: Draw = CASES.stacked


def assert_possible(schedule: Schedule) -> None:
    """Inputs are there before a task starts, and a device does one thing at a time."""
    instance, starts = schedule.instance, schedule.starts
    assert sorted(schedule.sequence) == list(range(len(instance.tasks)))
    for i, flow in enumerate(instance.flows):
        for consumer in flow.consumers:
            to = schedule.device[consumer]
            if flow.producer is None:
                ready = instance.crossing[i][1 - to] if instance.home == 1 - to else 0.0
            else:
                source = schedule.device[flow.producer]
                ready = schedule.finish(flow.producer) + (instance.crossing[i][source] if source != to else 0.0)
            assert starts[consumer] >= ready - 1e-9
    for device in (0, 1):
        for one, other in pairwise(schedule.order(device)):
            assert starts[other] >= schedule.finish(one) - 1e-9
    assert schedule.makespan >= max(map(schedule.finish, schedule.sequence)) - 1e-9


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(1, 12))
def test_every_schedule_can_be_run_and_is_no_worse_than_one_device(seed: int, count: int) -> None:
    instance = chance(seed, count)
    best = least_makespan(instance)
    assert_possible(best)
    for device in (0, 1):
        alone = scheduled(instance, (device,) * count)
        assert best.makespan <= alone.makespan
        assert least_bytes(instance, alone.makespan).scarce_bytes <= alone.scarce_bytes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds, st.integers(1, 8))
def test_the_search_is_within_five_percent_of_the_proven_best(seed: int, count: int) -> None:
    instance = chance(seed, count)
    best = least_makespan(instance)
    proof = prove_makespan(instance)
    assert proof is not None and proof.complete
    assert proof.bound <= best.makespan <= 1.05 * proof.schedule.makespan
    smallest = prove_bytes(instance, 1.3 * best.makespan)
    assert smallest is not None and smallest.complete
    assert smallest.schedule.makespan <= 1.3 * best.makespan * (1 + 1e-9)
    assert smallest.bound <= fewest_bytes(instance, 1.3 * best.makespan).scarce_bytes <= 1.05 * smallest.bound


@pytest.mark.parametrize("count", range(9, MAX_TASKS + 1))
def test_the_search_is_within_five_percent_of_the_proven_best_of_larger_graphs(count: int) -> None:
    """Nothing is looked for that is better by less, which takes a tenth of the steps."""
    for seed in range(LATENCY_SEEDS):
        instance = chance(seed, count)
        best = least_makespan(instance)
        proof = prove_makespan(instance, tolerance=CLOSE)
        assert proof is not None and proof.complete, seed
        assert best.makespan <= 1.05 * proof.schedule.makespan, seed
        if seed < MEMORY_SEEDS:
            smallest = prove_bytes(instance, 1.3 * best.makespan, tolerance=CLOSE)
            assert smallest is not None and smallest.complete, seed
            assert fewest_bytes(instance, 1.3 * best.makespan).scarce_bytes <= 1.05 * smallest.bound, seed


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 5))
def test_the_proof_agrees_with_trying_everything(seed: int, count: int) -> None:
    from itertools import permutations, product

    instance = chance(seed, count)
    before = instance.predecessors
    sequences = [
        order
        for order in permutations(range(count))
        if all(order.index(p) < order.index(t) for t in range(count) for p in before[t])
    ]
    least = min(times(instance, d, order)[1] for d in product((0, 1), repeat=count) for order in sequences)
    proof = prove_makespan(instance)
    assert proof is not None
    assert proof.bound <= least <= proof.schedule.makespan <= least * 1.001 + 1e-12


@pytest.mark.parametrize(("layers", "chunks", "speed"), [(2, 7, 1.0), (7, 2, 1.0), (2, 6, 3.0), (3, 4, 1.0)])
def test_recurrent_stacks_are_within_five_percent_of_the_proven_best(layers: int, chunks: int, speed: float) -> None:
    instance = stacked(layers, chunks, speed=speed)
    assert len(instance.tasks) <= MAX_TASKS
    proof = prove_makespan(instance)
    assert proof is not None and proof.complete
    assert least_makespan(instance).makespan <= 1.05 * proof.schedule.makespan


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(9, id="a task overtakes another with what it needs"),
        pytest.param(95, id="three tasks change places at once"),
    ],
)
def test_few_bytes_are_found_that_simpler_moves_miss(seed: int) -> None:
    instance = chance(seed, 10)
    limit = 1.3 * least_makespan(instance).makespan
    smallest = prove_bytes(instance, limit)
    assert smallest is not None
    assert smallest.complete
    assert least_bytes(instance, limit).scarce_bytes == smallest.schedule.scarce_bytes


@pytest.mark.parametrize(("seed", "count"), [(7, 6), (41, 14)])
def test_where_the_search_misses_the_fewest_bytes_the_proof_finds_them(seed: int, count: int) -> None:
    """The placement keeps the latency only in an order that is not among those that the search tries."""
    instance = chance(seed, count)
    limit = 1.3 * least_makespan(instance).makespan
    found, smallest = fewest_bytes(instance, limit), prove_bytes(instance, limit, tolerance=CLOSE)
    assert smallest is not None and smallest.complete
    assert found.scarce_bytes <= 1.05 * smallest.bound < least_bytes(instance, limit).scarce_bytes
    assert found.makespan <= limit * (1 + 1e-9)


def test_layers_overlap_as_a_wavefront() -> None:
    best = least_makespan(stacked(4, 8, latency=0.00001))
    work = 32 * 0.001
    assert work / best.makespan > 1.7


def test_the_memory_pattern_moves_whole_layers() -> None:
    # Three times faster, device 0 alone takes a third of the time. Half again as much time lets some layers leave.
    instance = stacked(8, 4, speed=3.0)
    alone = scheduled(instance, (0,) * 32)
    small = least_bytes(instance, 1.5 * alone.makespan)
    assert small.makespan <= 1.5 * alone.makespan
    assert small.scarce_bytes < 0.8 * alone.scarce_bytes
    held = [{small.device[layer * 4 + chunk] for chunk in range(4)} for layer in range(8)]
    assert all(len(devices) == 1 for devices in held), "a split layer would hold its weights twice"


def test_shared_weights_count_once_on_each_device_that_holds_them() -> None:
    instance = stacked(1, 4)
    tensors = instance.scarce_bytes((0, 0, 0, 0)) - 1_000_000
    assert 0 < tensors < 50_000
    assert 1_000_000 <= instance.scarce_bytes((0, 1, 0, 1)) < 1_050_000
    assert instance.scarce_bytes((1, 1, 1, 1)) == 0


def test_tensors_count_while_they_are_wanted() -> None:
    tasks = tuple(Task(name, (1.0, 1.0), (), 10 if name == "b" else 0) for name in "abc")
    flows = (Flow("x", 100, None, (0,)), Flow("ab", 30, 0, (1,)), Flow("bc", 7, 1, (2,)), Flow("y", 1, 2, (), True))
    instance = Instance(tasks, flows, {}, home=1)
    assert instance.scarce_bytes((0, 0, 0)) == 130
    assert instance.scarce_bytes((1, 0, 0)) == 30 + 7 + 10
    assert instance.scarce_bytes((1, 1, 0)) == 7 + 1


def test_the_curve_falls_from_the_quickest_to_the_smallest() -> None:
    points = curve(stacked(6, 6, speed=2.0))
    assert all(a.makespan < b.makespan and a.scarce_bytes > b.scarce_bytes for a, b in pairwise(points))
    assert points[-1].scarce_bytes == 0
    assert len(points) >= 6


def test_what_a_device_cannot_run_stays_on_the_other() -> None:
    instance = stacked(2, 3)
    bound = replace(
        instance, tasks=tuple(replace(t, seconds=(None, 0.001)) for t in instance.tasks[:3]) + instance.tasks[3:]
    )
    for schedule in (least_makespan(bound), *curve(bound)):
        assert schedule.device[:3] == (1, 1, 1)
    assert bound.whole(0) is None


def test_a_latency_that_cannot_be_kept_is_refused_with_the_least() -> None:
    with pytest.raises(NoScheduleError, match=r"the quickest schedule takes .* ms, 0.001 ms are permitted"):
        least_bytes(stacked(2, 2), 1e-6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ModelInvalidError, match="read before it is made"):
        Instance((Task("a", (1.0, 1.0)), Task("b", (1.0, 1.0))), (Flow("x", 1, 1, (0,)),))
    with pytest.raises(ModelInvalidError, match="no finite time"):
        Instance((Task("a", (None, None)),), ())
    with pytest.raises(ModelInvalidError, match="no operators"):
        least_makespan(Instance((), ()))


def test_the_same_question_gets_the_same_answer() -> None:
    one, other = (least_makespan(chance(7, 20)) for _ in range(2))
    assert (one.device, one.sequence) == (other.device, other.sequence)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 30), st.data())
def test_every_order_respects_the_graph(seed: int, count: int, data: st.DataObject) -> None:
    instance = chance(seed, count)
    device = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    for order in orders(instance, device):
        place = {task: i for i, task in enumerate(order)}
        assert sorted(order) == list(range(count))
        assert all(place[p] < place[t] for t in range(count) for p in instance.predecessors[t])


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 30), st.floats(0.1, 3.0))
def test_fusing_keeps_all_work_and_closes_no_cycle(seed: int, count: int, cheap: float) -> None:
    instance = chance(seed, count)
    instance = replace(instance, weights=dict.fromkeys(instance.weights, 0), home=None)
    groups = coarse(instance, cheap)
    assert sorted(task for group in groups for task in group) == list(range(count))
    smaller = merged(instance, groups)  # would refuse an order in which something is read before it is made
    for device in (0, 1):
        assert sum(s[device] for s in smaller.seconds) == pytest.approx(sum(s[device] for s in instance.seconds))
        alone = scheduled(smaller, (device,) * len(groups))
        assert alone.makespan == pytest.approx(scheduled(instance, (device,) * count).makespan)


def test_chains_of_cheap_operators_become_one_and_heavy_weights_stay_apart() -> None:
    tasks = (Task("table", (1e-6, 1e-6), ("table",)), *(Task(f"t{i}", (1e-6, 1e-6)) for i in range(3)))
    slow = Task("slow", (1.0, 1.0), ("w",))
    flows = [Flow(f"f{i}", 4, i, (i + 1,)) for i in range(4)]
    instance = Instance((*tasks, slow), (*flows, Flow("y", 4, 4, (), True)), {"table": 10**9, "w": 10**6})
    assert coarse(instance, 1e-5) == ((0,), (1, 2, 3, 4))
    assert coarse(instance, 1e-9) == ((0,), (1,), (2,), (3,), (4,))


def test_two_thousand_operators_are_planned() -> None:
    instance = stacked(20, 100)
    best = least_makespan(instance)
    assert_possible(best)
    assert 2000 * 0.001 / best.makespan > 1.8


def test_links_cost_by_direction() -> None:
    tasks = (Task("a", (1.0, None)), Task("b", (None, 1.0)), Task("c", (1.0, None)))
    flows = (Flow("ab", 10, 0, (1,)), Flow("bc", 10, 1, (2,)), Flow("y", 10, 2, (), True))
    instance = Instance(tasks, flows, {}, (Link(0.5, 0.1), Link(0.25, 0.0)), home=1)
    schedule = least_makespan(instance)
    assert schedule.makespan == pytest.approx(1 + 1.5 + 1 + 0.25 + 1 + 1.5)
    found = [moment for t in schedule.transfers() for moment in (t.source, t.start, t.finish)]
    assert found == pytest.approx([0, 1.0, 2.5, 1, 3.5, 3.75, 0, 4.75, 6.25])
