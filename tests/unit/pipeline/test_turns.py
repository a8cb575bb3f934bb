"""Who is woken for a device that runs one batch at a time: the process that is furthest behind, and no other."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

import pytest

from ensemble_runtime.pipeline.arena import LOADING, READY, Arena
from ensemble_runtime.pipeline.intake import NORMAL
from ensemble_runtime.pipeline.turns import Turn, shared
from ensemble_runtime.pipeline.wiring import Wiring

A, B, C = range(3)


@pytest.fixture
def placed(bench: Any) -> Iterator[tuple[Arena, Wiring]]:
    """One cell of each of three members on one device, each in a process of its own."""
    cells = [("s0", "a", 4), ("s0", "b", 4), ("s0", "c", 4), ("s1", "c", 4)]
    with bench.arena_of(bench.make_config(cells=cells)) as (arena, wiring):
        for cell in range(4):
            arena.state[cell] = READY
        yield arena, wiring


@pytest.fixture
def wait(bench: Any, placed: tuple[Arena, Wiring]) -> Any:
    """Lets so many rows wait for a member."""

    def push(member: int, rows: int) -> None:
        bench.push(placed[0].queues[member][NORMAL], [(0, row, 1, 0) for row in range(rows)])

    return push


def woken(bench: Any, wiring: Wiring) -> set[int]:
    return {process for process, bell in enumerate(wiring.turns) if bench.rung(bell)}


def turn(placed: tuple[Arena, Wiring], cell: int) -> Turn:
    return Turn(*placed, 0, cell)


def test_a_device_is_shared_only_by_cells_of_several_processes(placed: tuple[Arena, Wiring]) -> None:
    assert [shared(placed[0], cell) for cell in range(4)] == [True, True, True, False]


def test_who_lets_go_wakes_the_one_furthest_behind(bench: Any, placed: tuple[Arena, Wiring], wait: Any) -> None:
    with turn(placed, A):
        wait(B, 1)
        wait(C, 3)
        assert woken(bench, placed[1]) == set()
    assert woken(bench, placed[1]) == {C}


def test_who_is_furthest_behind_itself_wakes_nobody(bench: Any, placed: tuple[Arena, Wiring], wait: Any) -> None:
    with turn(placed, A):
        wait(A, 2)
        wait(B, 2)
    assert woken(bench, placed[1]) == set()


def test_a_cell_that_is_not_ready_is_not_waited_for(bench: Any, placed: tuple[Arena, Wiring], wait: Any) -> None:
    placed[0].state[B] = LOADING
    wait(B, 3)
    with turn(placed, A):
        pass
    assert woken(bench, placed[1]) == set()


@pytest.mark.parametrize("asleep", [True, False])
def test_one_that_sleeps_for_lack_of_work_is_woken_there(
    bench: Any, placed: tuple[Arena, Wiring], wait: Any, asleep: bool
) -> None:
    arena, wiring = placed
    arena.idle[B] = asleep
    wait(B, 1)
    assert turn(placed, A).pass_on()
    assert bench.rung(wiring.workers[B]) == asleep


def test_who_is_less_behind_gives_way_and_is_woken_after(bench: Any, placed: tuple[Arena, Wiring], wait: Any) -> None:
    wait(A, 1)
    wait(B, 2)
    took: list[str] = []

    def less_behind() -> None:
        with turn(placed, A):
            took.append("a")

    thread = threading.Thread(target=less_behind)
    thread.start()
    os.read(placed[1].turns[B], 8)  # sleeps until a gives way
    took.append("b")
    placed[0].queues[B][NORMAL].head += 2
    assert turn(placed, B).pass_on()
    thread.join(10)
    assert took == ["b", "a"]


def test_nobody_waits_for_ever_for_one_that_does_not_come(placed: tuple[Arena, Wiring], wait: Any) -> None:
    wait(A, 1)
    wait(B, 2)  # and b's process is stopped
    with turn(placed, A):
        assert placed[0].idle[A] == 1


def test_a_device_whose_holder_dies_is_free(placed: tuple[Arena, Wiring], wait: Any) -> None:
    arena, _ = placed
    told, tell = os.pipe()

    def hold() -> None:
        fcntl.lockf(arena.fd, fcntl.LOCK_EX, 1, len(arena.config.members))
        os.write(tell, b"x")
        os.kill(os.getpid(), 9)

    holder = get_context("fork").Process(target=hold)
    holder.start()
    assert os.read(told, 1) == b"x"
    wait(A, 1)
    with turn(placed, A):
        pass
    holder.join()
    for end in (told, tell):
        os.close(end)
