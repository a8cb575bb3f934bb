"""When a cell that has reported wakes the combiner: when a request may be complete by it, and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest

from ensemble_runtime.pipeline.arena import HURRIED, Arena
from ensemble_runtime.pipeline.holdups import HoldUps
from ensemble_runtime.pipeline.intake import AGAIN, HIGH, NORMAL, Intake
from ensemble_runtime.pipeline.wiring import Wiring

A, B, C = range(3)
MEMBERS = ["a", "b", "c"]


class Scene:
    """Members with a cell each, and requests of one row, the first of generation 2^32 - 1."""

    def __init__(self, arena: Arena, wiring: Wiring, push: Callable[..., None]) -> None:
        self.arena, self.wiring, self.push = arena, wiring, push
        self.intakes = [Intake(arena, cell) for cell in range(len(arena.config.cells))]
        for slot in range(8):
            arena.generation[slot] = (2**32 - 1 + slot) % 2**32

    def ask(self, *slots: int, queue: int = NORMAL, members: tuple[int, ...] = (A, B, C)) -> None:
        for member in members:
            self.push(self.arena.queues[member][queue], [(slot, slot, 1, 0) for slot in slots])

    def take(self, *cells: int) -> None:
        for cell in cells:
            assert self.intakes[cell].take()

    def held_up(self, cell: int) -> bool:
        """The cell reports what it has in hand."""
        count = self.arena.journals[cell].words[0]
        words = self.intakes[cell].words(count)
        self.intakes[cell].report_arrived(count)
        return HoldUps(self.arena, self.wiring, cell).all_of(words)


@pytest.fixture
def play(bench: Any) -> Iterator[Callable[..., Scene]]:
    """play(**changes of the configuration): a scene."""
    scenes = []

    def begin(**changes: Any) -> Scene:
        cells = changes.pop("cells", [(f"s{i}", name, 4) for i, name in enumerate(MEMBERS)])
        arena = bench.arena_of(bench.make_config(cells=cells, **changes))
        scenes.append(arena)
        return Scene(*arena.__enter__(), bench.push)

    yield begin
    for arena in scenes:
        arena.__exit__(None, None, None)


@pytest.mark.parametrize("order", list(permutations([A, B, C])))
def test_of_all_members_only_the_last_to_report_is_not_held_up(play: Callable[..., Scene], order: list[int]) -> None:
    scene = play()
    scene.ask(0, 1, 2)
    scene.take(A, B, C)
    assert [scene.held_up(cell) for cell in order] == [True, True, False]


def test_what_a_member_has_still_to_take_holds_up(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0, 1)
    for cell, held_up in ((A, True), (B, True), (C, False)):
        scene.take(cell)
        assert scene.held_up(cell) == held_up


def test_what_came_later_holds_nothing_up(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0, 1)
    scene.take(A, B, C)
    assert scene.held_up(B) and scene.held_up(C)
    scene.ask(2, 3)
    scene.take(B)  # and c has not even begun on it
    assert not scene.held_up(A)


def test_a_part_that_nobody_holds_up_is_told(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0)
    scene.take(B, C)
    assert scene.held_up(B) and scene.held_up(C)
    scene.ask(1)
    scene.take(B, C)
    scene.take(A)  # both
    assert not scene.held_up(A)


def test_other_cells_of_a_member_hold_up_what_they_have_in_hand(play: Callable[..., Scene]) -> None:
    scene = play(cells=[("s0", "a", 4), ("s1", "b", 2), ("s2", "b", 2), ("s0", "c", 4)])
    scene.ask(0, 1, 2, 3)
    scene.take(1, 2, 3)
    assert scene.held_up(3)
    assert scene.held_up(1), "a has not taken it"
    scene.take(0)
    assert scene.held_up(2)
    assert not scene.held_up(0)


def test_members_may_hold_up_a_part_each(play: Callable[..., Scene]) -> None:
    scene = play(cells=[("s0", "a", 4), ("s1", "b", 2), ("s2", "b", 2), ("s0", "c", 4)])
    scene.ask(0, 1)
    scene.take(3)
    scene.ask(2, 3)
    scene.take(0, 1, 2)
    assert scene.held_up(1), "a has it in hand"
    assert scene.held_up(0), "0 and 1 are with c, 2 and 3 with the other cell of b"
    assert not scene.held_up(3)


def test_queues_do_not_hold_up_each_other(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0, 2)
    scene.ask(1, queue=HIGH)
    scene.take(A, B, C)
    assert scene.held_up(B) and scene.held_up(C)
    scene.take(B, C)  # 0 and 2, between which 1 was sent
    assert not scene.held_up(A)


def test_a_request_with_a_deadline_is_told_of_each_member(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0, 1)
    scene.arena.flags[1] |= HURRIED
    scene.take(A)
    assert not scene.held_up(A)


def test_what_was_given_back_is_told(play: Callable[..., Scene]) -> None:
    scene = play()
    scene.ask(0)
    scene.ask(1, queue=AGAIN, members=(A,))
    scene.take(A)
    assert not scene.held_up(A)


def test_answers_that_take_long_to_fold_are_told(play: Callable[..., Scene]) -> None:
    scene = play(outputs=[{"name": "y", "datatype": "FP32", "shape": [40_000]}], serving={"queueRows": 8})
    scene.ask(0)
    scene.take(A)
    assert not scene.held_up(A)


def test_shadows_hold_nothing_up(play: Callable[..., Scene]) -> None:
    scene = play(members=["a", {"name": "b", "shadow": True}, "c"])
    scene.ask(0)
    scene.take(A, B, C)
    assert [scene.held_up(cell) for cell in (A, C, B)] == [True, False, False]
