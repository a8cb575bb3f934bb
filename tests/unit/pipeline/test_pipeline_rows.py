"""Rows of the arena: who gets which, and which rows a batch stands for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ensemble_runtime.pipeline.prediction import packed, rows_of, rows_of_words
from ensemble_runtime.pipeline.rows import RowAllocator

ROWS = 24


class Allocation(RuleBasedStateMachine):
    """The allocator beside a plain table of who holds each row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowAllocator(ROWS)
        self.held = np.zeros(ROWS, dtype=bool)
        self.runs: list[tuple[int, int]] = []

    @rule(count=st.one_of(st.just(1), st.integers(1, ROWS + 2)))
    def take(self, count: int) -> None:
        start = self.rows.take(count)
        if start is None:
            assert count > self.longest_free_run(), "a run that fits was not found"
            return
        assert 0 <= start <= ROWS - count
        assert not self.held[start : start + count].any(), "handed out twice"
        self.held[start : start + count] = True
        self.runs.append((start, count))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        start, count = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
        self.held[start : start + count] = False
        self.rows.give(start, count)

    @invariant()
    def free_rows_are_those_that_nobody_holds(self) -> None:
        assert self.rows.free == ROWS - self.held.sum()

    def teardown(self) -> None:
        for start, count in self.runs:
            self.rows.give(start, count)
        assert self.rows.take(ROWS) == 0, "what came back was not joined"

    def longest_free_run(self) -> int:
        return max(map(len, "".join("x" if held else " " for held in self.held).split("x")))


TestAllocation = Allocation.TestCase


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Disjoint runs of rows in any order."""
    bounds = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=12)))
    runs = [(first, end - first) for first, end in pairwise(bounds)]
    chosen = draw(st.lists(st.sampled_from(runs), min_size=1, max_size=len(runs), unique=True))
    shortened = [(first, draw(st.integers(1, count))) for first, count in chosen]
    return sorted(shortened) if draw(st.booleans()) else shortened


@given(batches())
def test_rows_of_a_batch_are_its_entries_rows_in_their_order(runs: list[tuple[int, int]]) -> None:
    entries = np.array([(7, first, count, 0) for first, count in runs], dtype=np.uint32)
    expected = [row for first, count in runs for row in range(first, first + count)]
    assert np.arange(100)[rows_of(entries)].tolist() == expected
    assert np.arange(100)[rows_of_words(entries.reshape(-1).tolist())].tolist() == sorted(expected)


def test_single_rows_that_are_taken_together_are_neighbours() -> None:
    rows = RowAllocator(ROWS)
    batches = [[rows.take(1) for _ in range(8)] for _ in range(2)]
    for _ in range(10):
        for row in batches.pop(0):
            rows.give(row, 1)
        batches.append([rows.take(1) for _ in range(8)])
        assert batches[-1] == list(range(batches[-1][0], batches[-1][0] + 8))


def test_a_batch_is_a_slice_whatever_the_order_of_its_rows() -> None:
    words = [word for first in (6, 4, 5) for word in (first, first, 1, 0)]
    assert rows_of_words(words) == slice(4, 7)


def test_rows_that_are_one_run_are_a_slice() -> None:
    entries = np.array([(0, 4, 2, 0), (3, 6, 1, 0), (1, 7, 5, 0)], dtype=np.uint32)
    assert rows_of(entries) == rows_of_words(entries.reshape(-1).tolist()) == slice(4, 12)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.data())
def test_packed_rows_lie_behind_one_another_and_within_their_request(
    rows: int, length: int, base: int, data: st.DataObject
) -> None:
    stride = 8 * 6  # up to six elements a row
    area = bytearray(stride * (base + rows + 1))
    whole = packed(memoryview(area), stride, "<i8", (length,), base, base, rows)
    whole[...] = np.arange(rows * length).reshape(rows, length)
    first = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - first))
    part = packed(memoryview(area), stride, "<i8", (length,), base, base + first, count)
    np.testing.assert_array_equal(part, whole[first : first + count])
    outside = np.ones(len(area), dtype=bool)
    outside[base * stride : base * stride + rows * length * 8] = False
    assert not np.frombuffer(area, np.uint8)[outside].any()
