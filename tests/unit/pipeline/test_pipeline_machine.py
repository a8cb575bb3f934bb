"""The whole pipeline in one thread, any of its processes dying between any two steps, against a plain account."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ensemble_runtime.config import Combination
from ensemble_runtime.pipeline import repair
from ensemble_runtime.pipeline.arena import ARRIVED, CANCELLED, MISSHAPEN, NOT_FINITE, RAISED, READY, SKIPPED, STARTING
from ensemble_runtime.pipeline.batching import Batcher
from ensemble_runtime.pipeline.combiner import Combiner
from ensemble_runtime.pipeline.disagreement import disagreement
from ensemble_runtime.pipeline.holdups import HoldUps
from ensemble_runtime.pipeline.leases import RowLease
from ensemble_runtime.pipeline.port import Options, Outcome, OverloadedError, Verdict
from ensemble_runtime.pipeline.prediction import packed
from ensemble_runtime.pipeline.wiring import ring

ROWS, SLOTS, TIMEOUT = 12, 5, 8.0
B, C = 2, 3
"""The cells of the members that have only one."""


@dataclass(eq=False)
class Request:
    """One request and what is known of it."""

    lease: RowLease
    values: np.ndarray
    needed: int
    quorum_at: float
    times_out_at: float
    disagreement: bool
    outcomes: list[Outcome] = field(default_factory=list)
    cancelled: bool = False
    arrived: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    failed: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def complete(self, member: int) -> bool:
        return len(self.arrived[member]) == self.lease.rows


class Pipeline(RuleBasedStateMachine):
    """Every rule is a step of one process; nothing moves by itself."""

    def __init__(self, bench: Any) -> None:
        super().__init__()
        self.bench = bench
        self.stack = ExitStack()

    @initialize(
        variable=st.booleans(),
        combination=st.sampled_from(["Mean", "Median", "WeightedMean"]),
        shadow=st.sampled_from([None, "a", "b", "c"]),
        quorum=st.booleans(),
    )
    def start(self, variable: bool, combination: str, shadow: str | None, quorum: bool) -> None:
        serving: dict[str, Any] = {"queueRows": ROWS, "queueRequests": SLOTS, "timeoutMs": TIMEOUT * 1e3}
        if quorum:
            serving["quorum"] = {"minMembers": 1 if shadow else 2, "deadlineMs": 2000}
        tensor = {"datatype": "FP32", "shape": [-1 if variable else 3], "maxLength": 3}
        self.config = self.bench.make_config(
            members=[{"name": m, "weight": w, "shadow": m == shadow} for m, w in (("a", 1.0), ("b", 2.0), ("c", 5.0))],
            inputs=[{"name": "x", **tensor}],
            outputs=[{"name": "y", **tensor}],
            combination={"rule": combination, "predictions": "Values"},
            serving=serving,
        )
        self.variable = variable
        self.arena, self.wiring = self.stack.enter_context(self.bench.arena_of(self.config))
        self.combined = [m for m, member in enumerate(self.config.members) if not member.shadow]
        self.cells = [self.bench.MortalCell(self.arena, cell) for cell in range(len(self.config.cells))]
        self.alive = [True] * len(self.cells)
        self.awake = [True] * len(self.cells)
        self.in_hand: list[np.ndarray | None] = [None] * len(self.cells)
        for cell in range(len(self.cells)):
            self.arena.state[cell] = READY
        self.inputs_seen = 0
        self.start_services()

    def start_services(self) -> None:
        self.loop = self.bench.SteppedLoop()
        self.batcher = Batcher(self.arena, self.wiring, self.loop)
        self.requests: list[Request] = []
        self.answered: list[tuple[Request, Outcome]] = []
        self.start_combiner()

    def start_combiner(self) -> None:
        # As `combine_until_killed` begins.
        self.combiner = Combiner(self.arena, {})
        while len(self.arena.completions):
            ring(self.wiring.gateway)
            self.read_completions()
        self.combiner.recover()
        self.combine()

    # -- the gateway --------------------------------------------------------------------------------------------------

    @rule(
        rows=st.integers(1, 5),
        length=st.integers(1, 3),
        priority=st.integers(0, 1),
        asks=st.booleans(),
        times=st.tuples(st.none() | st.floats(1, 20), st.none() | st.floats(0.5, 4)),
        min_members=st.none() | st.integers(1, 3),
        age=st.just(0.0) | st.floats(0.001, 5),
    )
    def submit(
        self, rows: int, length: int, priority: int, asks: bool, times: Any, min_members: int | None, age: float = 0.0
    ) -> None:
        shape = (length if self.variable else 3,)
        free, slots = self.batcher._rows.free, len(self.batcher._slots)
        try:
            lease = self.batcher.lease(rows, [shape])
        except OverloadedError:
            assert not slots or free < ROWS, "refused although everything was free"
            return
        values = (np.arange(rows * shape[0]) + 100.0 * self.inputs_seen).reshape(rows, *shape).astype("f4")
        self.inputs_seen += 1
        np.frombuffer(lease.input(0), "f4").reshape(values.shape)[...] = values
        timeout, deadline = times
        serving, arrival = self.config.serving, self.loop.time() - age
        patience = min(deadline or (serving.quorum.deadline_ms / 1e3 if serving.quorum else np.inf), timeout or TIMEOUT)
        needed = min_members or (serving.quorum.min_members if serving.quorum else len(self.combined))
        request = Request(
            lease, values, min(needed, len(self.combined)), arrival + patience, arrival + (timeout or TIMEOUT), asks
        )
        options = Options(priority, timeout, min_members, deadline, asks, age=age)
        self.batcher.submit(lease, options, lambda outcome: self.answered.append((request, outcome)))
        self.requests.append(request)

    @rule()
    def flush(self) -> None:
        self.loop.run_soon()

    @rule()
    def read_completions(self) -> None:
        self.loop.read()
        self.check_the_answered()

    @rule(seconds=st.floats(0.01, 3))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.advance(seconds)
        self.check_the_answered()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if waiting := [r for r in self.requests if not r.outcomes]:
            request = data.draw(st.sampled_from(waiting))
            request.cancelled = True
            self.batcher.cancel(request.lease)
            self.requests.remove(request)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if ended := [r for r in self.requests if r.outcomes]:
            self.finish(data.draw(st.sampled_from(ended)))

    def finish(self, request: Request) -> None:
        self.check_numbers(request)  # as long as the lease is held, nobody may write over the answer
        self.batcher.release(request.lease)
        self.requests.remove(request)

    @rule(luck=st.integers(0, 5), die_before_write=st.none() | st.integers(0, 30))
    def gateway_dies(self, luck: int, die_before_write: int | None) -> None:
        """Between two turns of its loop, or in the middle of sending what the clients have submitted."""
        if luck < 5:
            return
        if die_before_write is not None:
            with suppress(self.bench.DiedError), self.bench.mortal(self.batcher, die_before_write):
                self.loop.run_soon()
        repair.disown(self.arena, self.wiring)
        self.loop.close()
        self.start_services()

    # -- cells --------------------------------------------------------------------------------------------------------

    @rule(cell=st.integers(0, 3), die_before_write=st.sampled_from([None] * 12 + [0, 1, 2, 3, 4, 5]))
    def take(self, cell: int, die_before_write: int | None) -> None:
        """One turn of `_serve`."""
        if not self.alive[cell] or self.in_hand[cell] is not None:
            return
        if not self.awake[cell]:
            if not self.bench.rung(self.wiring.workers[cell]):
                return
            os.read(self.wiring.workers[cell], 8)
            self.awake[cell] = True
        try:
            self.in_hand[cell] = self.cells[cell].take(die_before_write)
        except self.bench.DiedError:
            self.alive[cell] = False
            return
        if self.in_hand[cell] is None:
            self.arena.idle[cell] = 1
            self.awake[cell] = False
        else:
            limit = self.config.cells[cell].batch_size
            assert 0 < self.in_hand[cell][:, 2].sum() <= limit, "a batch beyond the cell's batch size"

    @rule(cell=st.integers(0, 3), die_before_write=st.sampled_from([None] * 6 + [0, 1]), data=st.data())
    def report(self, cell: int, die_before_write: int | None, data: st.DataObject) -> None:
        entries = self.in_hand[cell]
        if entries is None or not self.alive[cell]:
            return
        codes = st.sampled_from([ARRIVED] * 6 + [RAISED, NOT_FINITE, MISSHAPEN])
        self.compute(cell, entries, data.draw(st.lists(codes, min_size=len(entries), max_size=len(entries))))
        ring_ = self.arena.reports[cell]
        before = ring_.tail
        try:
            self.cells[cell].report(entries, die_before_write)
        except self.bench.DiedError:
            self.alive[cell] = False
        if ring_.tail != before:
            self.note(self.cells[cell].intake.member, entries)
        if self.alive[cell]:
            self.tell(cell, entries)
            self.in_hand[cell] = None
            self.arena.idle[cell] = 1

    def tell(self, cell: int, entries: np.ndarray) -> None:
        """As a cell does that has reported."""
        arrived = (entries[:, 3] == ARRIVED).all()
        if not arrived or not HoldUps(self.arena, self.wiring, cell).all_of(entries.reshape(-1).tolist()):
            ring(self.wiring.combiner)

    def compute(self, cell: int, entries: np.ndarray, codes: list[int]) -> None:
        member = self.cells[cell].intake.member
        for entry, code in zip(entries, codes, strict=True):
            slot, first, count, _ = entry.tolist()
            if self.arena.flags[slot] & CANCELLED:
                entry[3] = SKIPPED
                continue
            entry[3] = code
            shape = (int(self.arena.input_shapes[slot, 0, 0]) if self.variable else 3,)
            base = int(self.arena.base[slot])
            stride_in, stride_out = self.arena.geometry.input_strides[0], self.arena.geometry.output_strides[0]
            values = packed(self.arena.inputs[0], stride_in, "<f4", shape, base, first, count)
            area = self.arena.member_outputs[member][0]
            self.arena.output_shapes[slot, member, 0, :1] = shape
            packed(area, stride_out, "<f4", shape, base, first, count)[...] = (
                values + 10 * member if code == ARRIVED else np.nan
            )

    def note(self, member: int, entries: np.ndarray) -> None:
        for slot, first, count, code in entries.tolist():
            for request in self.requests:
                lease = request.lease
                if lease.slot == slot and not lease.released:
                    assert lease.base <= first and first + count <= lease.base + lease.rows
                    rows = set(range(first, first + count))
                    already = request.arrived[member] | request.failed[member]
                    assert not rows & already, "reported twice"
                    (request.arrived if code == ARRIVED else request.failed)[member] |= rows

    @rule(cell=st.integers(0, 3), luck=st.integers(0, 3))
    def cell_dies(self, cell: int, luck: int) -> None:
        self.alive[cell] &= luck < 3

    @rule(cell=st.integers(0, 3))
    def reap(self, cell: int) -> None:
        """The supervisor finds a dead cell, gives back what it held, and starts it anew."""
        if self.alive[cell]:
            return
        nobody = self.arena.reports[-1]
        before = nobody.tail
        self.arena.state[cell] = STARTING
        repair.give_back(self.arena, self.wiring, cell)
        repair.put_down_abandoned(self.arena, self.wiring, self.cells[cell].intake.member)
        if lost := nobody.tail - before:
            entries = np.array([nobody.table[(before + i) % len(nobody.table)] for i in range(lost)])
            entries[:, 3] &= 0xFFFF
            self.note(self.cells[cell].intake.member, entries)
        self.arena.state[cell] = READY
        self.cells[cell] = self.bench.MortalCell(self.arena, cell)
        self.alive[cell] = self.awake[cell] = True
        self.in_hand[cell] = None
        self.arena.idle[cell] = 0

    # -- the combiner -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.bench.rung(self.wiring.combiner))
    @rule(dies=st.sampled_from(["no", "no", "after reading its doorbell", "before it publishes", "before it rings"]))
    def wake_combiner(self, dies: str) -> None:
        os.read(self.wiring.combiner, 8)
        if dies == "no":
            self.combine()
            return
        if dies == "before it publishes":
            self.combiner._publish = lambda: False  # type: ignore[method-assign]
        if dies != "after reading its doorbell":
            self.combiner.turn()
        self.start_combiner()

    def combine(self) -> None:
        if self.combiner.turn():
            ring(self.wiring.gateway)

    @rule()
    def combiner_dies(self) -> None:
        self.start_combiner()

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check_the_answered(self) -> None:
        answered, self.answered = self.answered, []
        for request, outcome in answered:
            self.check(request, outcome)

    def check(self, request: Request, outcome: Outcome) -> None:
        request.outcomes.append(outcome)
        assert len(request.outcomes) == 1, "answered twice"
        assert not request.cancelled, "answered after it was cancelled"
        names = [member.name for member in self.config.members]
        missing = {names.index(name) for name in outcome.missing if name != "combination"}
        assert missing <= set(self.combined)
        alive = [m for m in self.combined if not request.failed[m]]
        used = [m for m in self.combined if m not in missing]
        match outcome.verdict:
            case Verdict.COMPLETE:
                assert not missing and all(request.complete(m) for m in self.combined)
            case Verdict.PARTIAL:
                assert request.needed <= len(used) < len(self.combined)
                assert all(request.complete(m) for m in used)
                overdue = self.loop.time() >= request.quorum_at
                assert overdue or all(request.failed[m] for m in missing), "left before its deadline"
            case Verdict.MEMBER_FAILED:
                assert len(alive) < request.needed
                assert missing and all(request.failed[m] for m in missing)
            case Verdict.TIMED_OUT:
                assert self.loop.time() >= request.times_out_at
                assert outcome.missing and missing >= {m for m in self.combined if not request.complete(m)}
        self.check_numbers(request)

    def check_numbers(self, request: Request) -> None:
        outcome, lease = request.outcomes[0], request.lease
        if not outcome.answered:
            return
        used = [m for m in self.combined if self.config.members[m].name not in outcome.missing]
        members = np.stack([request.values + 10 * m for m in used])
        weights = [self.config.members[m].weight for m in used]
        expected = {
            "Mean": lambda: members.mean(axis=0),
            "Median": lambda: np.median(members, axis=0),
            "WeightedMean": lambda: np.average(members, axis=0, weights=weights),
        }[self.config.combination.rule.value]()
        np.testing.assert_allclose(lease.output(0), expected, rtol=1e-5)
        for m, values in zip(used, members, strict=True):
            np.testing.assert_array_equal(lease.member_output(self.config.members[m].name, 0), values)
        if request.disagreement:
            signals = np.stack(list(lease.disagreement().values()), axis=1)
            expected = disagreement(members, weights, Combination.model_validate({"predictions": "Values"}).predictions)
            np.testing.assert_allclose(signals, expected, rtol=1e-4)

    # -- the end ------------------------------------------------------------------------------------------------------

    def work_off(self, cell: int) -> bool:
        """Whatever a sound cell would do now; whether it did anything."""
        entries = self.in_hand[cell]
        if entries is not None:
            self.compute(cell, entries, [ARRIVED] * len(entries))
            self.cells[cell].report(entries)
            self.note(self.cells[cell].intake.member, entries)
            self.in_hand[cell] = None
            self.arena.idle[cell] = 1
            self.tell(cell, entries)
            return True
        was_awake = self.awake[cell]
        self.take(cell, None)
        return was_awake or self.awake[cell]

    @rule(rounds=st.integers(1, 4))
    def everybody_goes_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.go_on()

    def go_on(self) -> bool:
        """One round of all that is alive, while time stands still; whether anybody did anything."""
        progress = self.loop.run_soon()
        progress |= sum(self.work_off(cell) for cell in range(len(self.cells)) if self.alive[cell]) > 0
        if self.bench.rung(self.wiring.combiner):
            self.wake_combiner("no")
            progress = True
        progress |= self.loop.read()
        self.check_the_answered()
        return progress

    def drain(self) -> None:
        while self.go_on():
            pass

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            for cell in range(len(self.cells)):
                self.reap(cell)
            self.drain()
            assert all(request.outcomes for request in self.requests), "nobody is at work, and a request has no answer"
            for request in list(self.requests):
                self.finish(request)
            self.drain()
            assert self.batcher.in_flight == 0
            assert self.batcher._rows.free == ROWS
            assert len(self.batcher._slots) == SLOTS
            self.loop.close()
        self.stack.close()


def test_every_request_ends_once_and_right_whoever_dies_when(bench: Any) -> None:
    run_state_machine_as_test(
        lambda: Pipeline(bench),
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),  # to explain a failure takes minutes
            report_multiple_bugs=False,
        ),
    )


# -- scenes that chance plays too rarely ------------------------------------------------------------------------------


@pytest.fixture
def play(bench: Any) -> Iterator[Callable[..., Pipeline]]:
    """play(**start): the machine as its rules find it; whatever a scene leaves over is drained and checked."""
    machines: list[Pipeline] = []

    def start(**options: Any) -> Pipeline:
        machine = Pipeline(bench)
        machines.append(machine)
        machine.start(**{"variable": False, "combination": "Mean", "shadow": None, "quorum": False, **options})
        return machine

    yield start
    for machine in machines:
        machine.teardown()


def ask(pipeline: Pipeline, rows: int = 2) -> Request:
    pipeline.submit(rows=rows, length=3, priority=0, asks=False, times=(None, None), min_members=None)
    pipeline.flush()
    return pipeline.requests[-1]


def answer(pipeline: Pipeline, *members: str) -> None:
    """These members' cells do all that waits for them, and the combiner and the gateway hear of it."""
    for cell, found in enumerate(pipeline.config.cells):
        while found.member in members and pipeline.work_off(cell):
            pass
    listen(pipeline)


def listen(pipeline: Pipeline) -> None:
    if pipeline.bench.rung(pipeline.wiring.combiner):
        pipeline.wake_combiner("no")
    pipeline.read_completions()


def test_what_has_died_with_a_process_twice_has_failed(play: Callable[..., Pipeline]) -> None:
    pipeline = play()
    request = ask(pipeline)
    answer(pipeline, "a", "c")
    for _ in range(2):
        pipeline.take(B, None)
        pipeline.alive[B] = False
        pipeline.reap(B)
    listen(pipeline)
    assert request.outcomes == [Outcome(Verdict.MEMBER_FAILED, {"b": "died or hung on this request"})]
    assert not pipeline.cells[B].intake.waiting()


def test_a_request_that_must_fail_does_so_at_once(play: Callable[..., Pipeline]) -> None:
    pipeline = play()
    request = ask(pipeline)
    pipeline.take(B, None)
    entries = pipeline.in_hand[B]
    assert entries is not None
    pipeline.compute(B, entries, [NOT_FINITE])
    pipeline.cells[B].report(entries)
    pipeline.note(1, entries)
    pipeline.in_hand[B] = None
    ring(pipeline.wiring.combiner)
    listen(pipeline)
    assert request.outcomes == [Outcome(Verdict.MEMBER_FAILED, {"b": "returned NaN or infinity"})]


def test_a_report_is_heard_although_its_cell_died_before_it_rang(play: Callable[..., Pipeline]) -> None:
    pipeline = play()
    request = ask(pipeline)
    answer(pipeline, "a", "c")
    pipeline.take(B, None)
    entries = pipeline.in_hand[B]
    assert entries is not None
    pipeline.compute(B, entries, [ARRIVED])
    pipeline.cells[B].report(entries)
    pipeline.note(1, entries)
    pipeline.alive[B] = False
    pipeline.reap(B)
    listen(pipeline)
    assert [outcome.verdict for outcome in request.outcomes] == [Verdict.COMPLETE]


def test_a_deadline_outlives_the_combiner_that_heard_of_it(play: Callable[..., Pipeline]) -> None:
    pipeline = play(quorum=True)  # two of three after two seconds
    request = ask(pipeline)
    answer(pipeline, "a")
    pipeline.let_time_pass(2.5)
    listen(pipeline)
    pipeline.combiner_dies()
    answer(pipeline, "b")
    pipeline.let_time_pass(1.5)
    listen(pipeline)
    assert request.outcomes == [Outcome(Verdict.PARTIAL, {"c": "did not answer in time"})]
    assert pipeline.arena.flags[request.lease.slot] & CANCELLED, "nobody needs to begin on it any more"


def test_a_deadline_that_is_over_on_arrival_counts_at_once(play: Callable[..., Pipeline]) -> None:
    pipeline = play(quorum=True)
    pipeline.submit(rows=2, length=3, priority=0, asks=False, times=(None, None), min_members=None, age=2.5)
    (request,) = pipeline.requests
    pipeline.batcher._look_at_the_clock()  # uvloop's timers come before what was left for the next turn
    answer(pipeline, "a")
    assert not request.outcomes
    answer(pipeline, "b")
    assert request.outcomes == [Outcome(Verdict.PARTIAL, {"c": "did not answer in time"})]


def test_an_answer_stays_as_it_left_although_the_combiner_died_and_the_rest_arrived(
    play: Callable[..., Pipeline],
) -> None:
    pipeline = play(quorum=True)
    request = ask(pipeline)
    pipeline.take(C, None)
    answer(pipeline, "a", "b")
    pipeline.let_time_pass(2.5)
    listen(pipeline)
    pipeline.combiner_dies()
    assert request.outcomes[0].verdict is Verdict.PARTIAL
    entries = pipeline.in_hand[C]
    assert entries is not None
    pipeline.arena.flags[request.lease.slot] &= ~np.uint32(CANCELLED)  # it had begun before that was said
    answer(pipeline, "c")
    pipeline.finish(request)
    assert pipeline.batcher.in_flight == 0


def test_rows_come_back_although_the_combiner_died_before_it_said_so(play: Callable[..., Pipeline]) -> None:
    pipeline = play()
    request = ask(pipeline)
    answer(pipeline, "a", "b")
    request.cancelled = True
    pipeline.batcher.cancel(request.lease)
    pipeline.requests.remove(request)
    listen(pipeline)
    while pipeline.work_off(C):
        pass
    pipeline.wake_combiner("before it publishes")
    pipeline.read_completions()
    assert pipeline.batcher.in_flight == 0


def test_what_was_folded_of_a_cancelled_request_is_forgotten(play: Callable[..., Pipeline]) -> None:
    pipeline = play()
    request = ask(pipeline)
    answer(pipeline, "a", "b")
    request.cancelled = True
    pipeline.batcher.cancel(request.lease)
    pipeline.requests.remove(request)
    listen(pipeline)
    answer(pipeline, "c")
    assert pipeline.batcher.in_flight == 0
    again = ask(pipeline)
    assert again.lease.base == request.lease.base
    answer(pipeline, "a", "b", "c")
    assert [outcome.verdict for outcome in again.outcomes] == [Verdict.COMPLETE]


def test_members_whose_rows_have_another_shape_are_outvoted(play: Callable[..., Pipeline]) -> None:
    pipeline = play(variable=True, quorum=True)
    request = ask(pipeline)
    answer(pipeline, "a", "b")
    pipeline.take(C, None)
    # The first member turns out to be the odd one, before the last arrives.
    pipeline.arena.output_shapes[request.lease.slot, 0, 0, 0] = 2
    pipeline.let_time_pass(2.5)
    listen(pipeline)
    assert not request.outcomes, "there are no two that agree"
    answer(pipeline, "c")
    assert request.outcomes == [Outcome(Verdict.PARTIAL, {"a": "returned a wrong shape"})]
