"""A lane reports all its members at once: however its process dies, all of them have reported or none."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from ensemble_runtime.pipeline.intake import NORMAL, recover
from ensemble_runtime.pipeline.remote_intake import LaneIntake, report_together
from ensemble_runtime.span import laid_out

WORK = [(0, 0, 1, 0), (1, 1, 2, 0)]


def head(bench: Any) -> Any:
    """a is here; b and c are far away, over two connections."""
    remote = {"name": "far", "url": "http://far:8000", "tokenFile": "/token"}
    cells = [("s0", "a", 4), ("far", "b", 4), ("far", "c", 4)]
    return laid_out(bench.make_config(remotes=[remote], cells=cells))


def lane_of(bench: Any, arena: Any, cells: tuple[int, ...]) -> tuple[list[LaneIntake], Any]:
    """A lane whose writes to the arena are counted, and its fuse."""
    mortals = [bench.MortalCell(arena, cells[0])]
    mortals += [bench.MortalCell(arena, cell, fuse=mortals[0].fuse) for cell in cells[1:]]
    lane = []
    for cell, mortal in zip(cells, mortals, strict=True):
        intake = LaneIntake(arena, cell)
        intake._reports, intake._journal = mortals[0].intake._reports, mortal.intake._journal
        lane.append(intake)
    return lane, mortals[0].fuse


@pytest.mark.parametrize("writes", range(4))
def test_a_process_that_dies_while_it_reports_has_reported_all_or_nothing(bench: Any, writes: int) -> None:
    with bench.arena_of(head(bench)) as (arena, _):
        for member in (1, 2):
            bench.push(arena.queues[member][NORMAL], WORK)
        (b, c), fuse = lane_of(bench, arena, (1, 2))
        entries = b.entries(b.take())
        assert c.take_these(entries)
        fuse.writes_left = writes
        with contextlib.suppress(bench.DiedError):
            report_together({b: entries.copy(), c: entries.copy()})
        reported = len(arena.reports[1])
        assert reported in (0, 4)
        lost = [recover(arena, cell) for cell in (1, 2)]
        for part in lost:
            assert part.tolist() == ([] if reported else [list(entry) for entry in WORK])


def test_what_follows_is_taken_only_if_it_is_the_same(bench: Any) -> None:
    with bench.arena_of(head(bench)) as (arena, _):
        bench.push(arena.queues[1][NORMAL], WORK)
        bench.push(arena.queues[2][NORMAL], WORK[1:])
        b, c = (LaneIntake(arena, cell) for cell in (1, 2))
        entries = b.entries(b.take())
        assert not c.take_these(entries)
        assert c.waiting() == 1
        assert c.take_these(np.array(WORK[1:], np.uint32))
        assert c.waiting() == 0


def test_lanes_report_on_rings_of_their_own_and_their_members_share_one(bench: Any) -> None:
    with bench.arena_of(head(bench)) as (arena, _):
        assert arena.geometry.processes == ((0,), (1, 2, 3, 4))
        assert arena.geometry.reporters == (0, 1, 1, 3, 3)
        assert arena.reports[1] is arena.reports[2]
        assert arena.reports[3] is not arena.reports[1]
