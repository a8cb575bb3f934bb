"""Gates between two processes: nothing passes early, nothing is lost, whether the waiting one looks or sleeps."""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable

import pytest

from ensemble_runtime.partition.gates import LINE, Bells, following, lines

TURNS = 50


class Two:
    """This process and a child that share some gates; the child computes something, and ends."""

    def __init__(self, child: Callable[[Bells, memoryview], None], gates: int = 2) -> None:
        shared = mmap.mmap(-1, gates * LINE)
        self.gates = lines(shared, gates * LINE)
        self.words = memoryview(shared).cast("I")
        here, there = (memoryview(mmap.mmap(-1, LINE)).cast("I") for _ in range(2))
        one, other = os.eventfd(0), os.eventfd(0)
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            try:
                child(Bells(other, one, theirs.fileno(), (there, here)), self.gates)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours  # kept open
        self.bells = Bells(one, other, ours.fileno(), (here, there))

    def end(self) -> None:
        """Wait for the child."""
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("pause", [0.0, 0.0002, 0.0009, 0.02])
def test_turns_alternate(pause: float) -> None:
    """With pauses shorter and longer than the time for which a gate is watched, and about as long."""

    def other(bells: Bells, gates: memoryview) -> None:
        for turn in range(1, TURNS + 1):
            bells.wait(gates, 0, turn)
            time.sleep(pause)
            bells.open(gates, 1, turn)

    two = Two(other)
    for turn in range(1, TURNS + 1):
        assert two.gates[1] == turn - 1, "nothing passes before it is let"
        time.sleep(pause)
        two.bells.open(two.gates, 0, turn)
        two.bells.wait(two.gates, 1, turn)
    two.end()


def test_a_gate_is_open_for_one_turn() -> None:
    two = Two(lambda bells, gates: bells.wait(gates, 0, 2))
    two.bells.open(two.gates, 0, 1)
    assert not two.bells.passed(two.gates, 0, 2)
    time.sleep(0.05)
    assert os.waitpid(two.pid, os.WNOHANG) == (0, 0), "the child still waits"
    two.bells.open(two.gates, 0, 2)
    two.end()


def test_what_is_written_before_a_gate_opens_is_seen_behind_it() -> None:
    """Many words, each turn others, summed by the other process."""

    found, first = LINE // 4 + 1, 2 * LINE // 4

    def other(bells: Bells, gates: memoryview) -> None:
        assert isinstance(gates.obj, mmap.mmap)
        words = memoryview(gates.obj).cast("I")
        for turn in range(1, TURNS + 1):
            bells.wait(gates, 0, turn)
            words[found] = sum(words[first:])
            bells.open(gates, 1, turn)

    two = Two(other, gates=66)
    for turn in range(1, TURNS + 1):
        for i in range(first, len(two.words)):
            two.words[i] = turn
        two.bells.open(two.gates, 0, turn)
        two.bells.wait(two.gates, 1, turn)
        assert two.words[found] == turn * 64 * LINE // 4
    two.end()


@pytest.mark.parametrize("after", [0.0, 0.05])
def test_who_waits_for_a_process_that_ends_hears_of_it(after: float) -> None:
    two = Two(lambda bells, gates: time.sleep(after))
    with pytest.raises(SystemExit):
        two.bells.wait(two.gates, 1, 1)
    two.end()


def test_what_was_opened_before_the_end_is_still_passed() -> None:
    two = Two(lambda bells, gates: bells.open(gates, 1, 1))
    two.end()
    two.bells.wait(two.gates, 1, 1)


def test_a_gate_whose_opening_was_not_seen_at_once_is_passed() -> None:
    """Both ends may look in the same moment: the other one rings no bell then, and its write comes a little later."""

    class Late:
        def poll(self, patience: int | None) -> list[tuple[int, int]]:
            assert patience is not None, "it would sleep for ever"
            two.gates[0] = 1
            return []

    two = Two(lambda bells, gates: None)
    two.bells._poll = Late()  # type: ignore[assignment]
    assert not two.bells.sleep(two.gates, 0, 1)
    assert two.bells.passed(two.gates, 0, 1)
    two.end()


def test_turns_are_never_zero() -> None:
    """Which is what gates hold before anybody has opened them."""
    assert following(0) == 1
    assert following(1) == 2
    assert following(2**32 - 1) == 1
