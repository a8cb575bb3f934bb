"""Gates between two threads: nothing passes early, nothing is lost, whether the waiting one looks or sleeps."""

from __future__ import annotations

import threading
import time

import pytest

from ensemble_runtime.partition.gates import Gate


@pytest.mark.parametrize("pause", [0.0, 0.0002, 0.02])
def test_turns_alternate(pause: float) -> None:
    """With pauses shorter and longer than the time for which a gate is watched."""
    there, back = Gate(), Gate()
    seen: list[str] = []

    def other() -> None:
        for i in range(50):
            there.acquire()
            seen.append(f"other {i}")
            time.sleep(pause)
            back.release()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    for i in range(50):
        seen.append(f"one {i}")
        time.sleep(pause)
        there.release()
        back.acquire()
    thread.join(10)
    assert seen == [f"{who} {i}" for i in range(50) for who in ("one", "other")]


def test_an_open_gate_is_passed_once() -> None:
    gate, passed = Gate(), threading.Event()
    gate.release()
    gate.acquire()

    def again() -> None:
        gate.acquire()
        passed.set()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    assert not passed.wait(0.1)
    gate.release()
    assert passed.wait(10)
    thread.join(10)


def test_waiting_threads_do_not_hold_up_python() -> None:
    """While one thread waits, another computes; a watch that held the global lock would stop it for all its turns."""
    gate = Gate()
    thread = threading.Thread(target=gate.acquire, daemon=True)
    thread.start()
    count, until = 0, time.perf_counter() + 0.05
    while time.perf_counter() < until:
        count += 1
    assert count > 100
    gate.release()
    thread.join(10)
    assert not thread.is_alive()
