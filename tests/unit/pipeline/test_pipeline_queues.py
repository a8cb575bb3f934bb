"""The queue between the gateway and the cells of a member: an entry is never lost and never done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.pipeline import repair
from ensemble_runtime.pipeline.arena import ARRIVED, DIED, ENTRY_BYTES, READY, Arena
from ensemble_runtime.pipeline.intake import AGAIN, HIGH, NORMAL, Intake, recover
from ensemble_runtime.pipeline.wiring import Wiring

WRITES_OF_A_TAKE = 5
"""Ring, first index, report tail and count in the journal; then the queue's head."""


@pytest.fixture
def placed(bench: Any) -> Iterator[tuple[Arena, Wiring]]:
    """Member a has the cells 0 and 1, of batch sizes 2 and 3."""
    with bench.arena_of(bench.make_config(serving={"queueRows": 16})) as placed:
        for cell in range(4):
            placed[0].state[cell] = READY
        yield placed


def drain(arena: Arena, cells: list[Any]) -> list[int]:
    """First rows of all that the cells still find, in their order."""
    found: list[int] = []
    progress = True
    while progress:
        progress = False
        for cell in cells:
            entries = cell.take()
            if entries is not None:
                found += entries[:, 1].tolist()
                cell.report(entries)
                progress = True
    return found


@pytest.mark.parametrize(
    ("died_before", "heir"), list(product([None, *range(WRITES_OF_A_TAKE)], ["sibling", "supervisor"]))
)
def test_a_cell_may_die_anywhere_in_a_take(
    bench: Any, placed: tuple[Arena, Wiring], died_before: int | None, heir: str
) -> None:
    arena, wiring = placed
    bench.push(arena.queues[0][NORMAL], [(0, row, 1, 0) for row in range(5)])
    poor, sibling = bench.MortalCell(arena, 0), bench.MortalCell(arena, 1)
    taken_before = sibling.take()  # its journal has known better days
    sibling.report(taken_before)
    if died_before is None:
        poor.take()
    else:
        with pytest.raises(bench.DiedError):
            poor.take(died_before)
    done = taken_before[:, 1].tolist()
    if heir == "sibling":
        done += drain(arena, [sibling])
    repair.give_back(arena, wiring, 0)
    done += drain(arena, [sibling, bench.MortalCell(arena, 0)])
    assert Counter(done) == Counter(range(5))


@pytest.mark.parametrize("died_before", [None, *range(WRITES_OF_A_TAKE)])
def test_a_cell_without_siblings_may_die_anywhere_in_a_take(
    bench: Any, placed: tuple[Arena, Wiring], died_before: int | None
) -> None:
    arena, wiring = placed
    bench.push(arena.queues[1][NORMAL], [(0, row, 1, 0) for row in range(5)])
    if died_before is None:
        bench.MortalCell(arena, 2).take()
    else:
        with pytest.raises(bench.DiedError):
            bench.MortalCell(arena, 2).take(died_before)
    repair.give_back(arena, wiring, 2)
    assert Counter(drain(arena, [bench.MortalCell(arena, 2)])) == Counter(range(5))


@pytest.mark.parametrize(("died_before", "done_by_the_dead"), [(0, False), (1, True)])
def test_a_cell_may_die_anywhere_in_a_report(
    bench: Any, placed: tuple[Arena, Wiring], died_before: int, done_by_the_dead: bool
) -> None:
    arena, wiring = placed
    bench.push(arena.queues[0][NORMAL], [(0, row, 1, 0) for row in range(2)])
    poor = bench.MortalCell(arena, 0)
    entries = poor.take()
    with pytest.raises(bench.DiedError):
        poor.report(entries, died_before)
    repair.give_back(arena, wiring, 0)
    again = drain(arena, [bench.MortalCell(arena, 0), bench.MortalCell(arena, 1)])
    assert again == ([] if done_by_the_dead else [0, 1])
    assert len(arena.reports[0]) + len(arena.reports[1]) == 2


def test_what_has_arrived_is_reported_as_it_was_taken(bench: Any, placed: tuple[Arena, Wiring]) -> None:
    arena, _ = placed
    arena.queues[0][NORMAL].push(b"\0" * ENTRY_BYTES * 14)  # the next ones wrap around
    arena.queues[0][NORMAL].head += 14
    bench.push(arena.queues[0][NORMAL], [(7, 8, 1, 0), (5, 2, 1, 0), (6, 9, 1, 0)])
    cell = Intake(arena, 1)
    assert cell.take() == 3
    assert cell.words(3) == [7, 8, 1, 0, 5, 2, 1, 0, 6, 9, 1, 0]
    cell.report_arrived(3)
    assert arena.reports[1].peek(3).tolist() == [[7, 8, 1, ARRIVED], [5, 2, 1, ARRIVED], [6, 9, 1, ARRIVED]]
    assert recover(arena, 1).tolist() == []


@pytest.mark.parametrize(("rows", "taken"), [([1, 1, 1], 2), ([2, 1], 1), ([1, 2], 1), ([3, 1], 1)])
def test_a_batch_has_no_more_rows_than_its_cell_may_take(
    bench: Any, placed: tuple[Arena, Wiring], rows: list[int], taken: int
) -> None:
    arena, _ = placed
    bench.push(arena.queues[0][NORMAL], [(i, 4 * i, count, 0) for i, count in enumerate(rows)])
    arena.idle[1] = 0  # the member's other cell, with which it would share
    assert Intake(arena, 0).take() == taken


def test_what_comes_back_runs_alone_and_first_and_not_a_third_time(bench: Any, placed: tuple[Arena, Wiring]) -> None:
    arena, wiring = placed
    bench.push(arena.queues[0][NORMAL], [(0, 0, 1, 0), (0, 1, 1, 0), (0, 2, 1, 0)])
    bench.MortalCell(arena, 1).take()  # and dies with three entries in hand
    repair.give_back(arena, wiring, 1)
    bench.push(arena.queues[0][HIGH], [(0, 3, 1, 0)])
    cell = bench.MortalCell(arena, 0)
    assert cell.take().tolist() == [[0, 0, 1, 1]]
    repair.give_back(arena, wiring, 0)  # the second death of row 0
    nobody = arena.reports[len(arena.config.cells)]
    assert nobody.peek(len(nobody)).tolist() == [[0, 0, 1, DIED | 0 << 16]]
    cell = bench.MortalCell(arena, 0)
    assert [cell.take()[0, 1] for _ in range(3)] == [1, 2, 3]


def test_idle_siblings_get_their_share(bench: Any, placed: tuple[Arena, Wiring]) -> None:
    arena, _ = placed
    bench.push(arena.queues[0][NORMAL], [(0, row, 1, 0) for row in range(4)])
    arena.idle[0] = arena.idle[1] = 1
    assert Intake(arena, 1).take() == 2
    assert not arena.idle[1], "it has work in hand"
    assert Intake(arena, 0).take() == 2


def test_a_busy_sibling_gets_nothing(bench: Any, placed: tuple[Arena, Wiring]) -> None:
    arena, _ = placed
    bench.push(arena.queues[0][NORMAL], [(0, row, 1, 0) for row in range(4)])
    assert Intake(arena, 1).take() == 3, "a full batch"


@given(
    st.lists(st.tuples(st.sampled_from([AGAIN, HIGH, NORMAL]), st.integers(1, 2)), max_size=12),
    st.lists(st.integers(0, 1), max_size=30),
)
def test_entries_are_taken_once_in_order_and_within_the_batch_size(
    bench: Any, pushed: list[tuple[int, int]], takers: list[int]
) -> None:
    with bench.arena_of(bench.make_config(serving={"queueRows": 32})) as (arena, _):
        waiting: dict[int, list[tuple[int, int]]] = {AGAIN: [], HIGH: [], NORMAL: []}
        for number, (ring, rows) in enumerate(pushed):
            bench.push(arena.queues[0][ring], [(7, 2 * number, rows, 0)])
            waiting[ring].append((2 * number, rows))
        cells = [Intake(arena, 0), Intake(arena, 1)]
        for turn in [*takers, *[0] * 12]:
            assert cells[turn].waiting() == sum(map(len, waiting.values()))
            assert cells[turn].waiting_rows() == sum(rows for ring in waiting.values() for _, rows in ring)
            count = cells[turn].take()
            first = next((ring for ring in (AGAIN, HIGH, NORMAL) if waiting[ring]), None)
            if first is None:
                assert count == 0
                continue
            entries = cells[turn].entries(count)
            expected, waiting[first] = waiting[first][: len(entries)], waiting[first][len(entries) :]
            assert entries[:, 1:3].tolist() == [list(entry) for entry in expected]
            assert 0 < entries[:, 2].sum() <= arena.config.cells[turn].batch_size
            assert first != AGAIN or len(entries) == 1
            entries[:, 3] = ARRIVED
            cells[turn].report(entries)
        assert not any(waiting.values())


@given(st.lists(st.one_of(st.integers(1, 8), st.integers(-8, -1)), max_size=60))
def test_a_ring_gives_back_what_was_put_in_across_its_end(bench: Any, steps: list[int]) -> None:
    with bench.arena_of(bench.make_config(serving={"queueRows": 8})) as (arena, _):
        ring = arena.queues[0][NORMAL]
        assert len(ring.table) == 8
        expected: list[list[int]] = []
        for number, step in enumerate(steps):
            if step > 0:
                blob = [[number, i, 1, 0] for i in range(min(step, 8 - len(expected)))]
                ring.push(np.array(blob, np.uint32).reshape(-1, 4).tobytes())
                expected += blob
            else:
                count = min(-step, len(expected))
                ring.head += count
                del expected[:count]
            assert len(ring) == len(expected)
            assert ring.peek(len(ring)).tolist() == expected
            assert ring.rows(len(ring)) == [rows for _, _, rows, _ in expected]
