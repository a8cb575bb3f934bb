"""What the processes share besides the arena: doorbells, and how a process is tied to its parent."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

_ONE = (1).to_bytes(8, sys.byteorder)
_LINGER = 0.0004
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Wiring:
    """One eventfd ("doorbell") for each process that sleeps; every process inherits all of them."""

    workers: tuple[int, ...]
    turns: tuple[int, ...]
    """Further ones on which prediction processes wait for their device: new requests need not wake them there."""
    combiner: int
    gateway: int
    sequence: int
    """Nobody sleeps on it: cells that report ring it, for the kernel then puts them in an order."""

    @staticmethod
    def lay(workers: int) -> Wiring:
        """Make the doorbells."""
        return Wiring(
            workers=tuple(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(workers)),
            turns=tuple(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(workers)),
            combiner=os.eventfd(0, os.EFD_CLOEXEC),
            gateway=os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            sequence=os.eventfd(0, os.EFD_CLOEXEC),
        )


def ring(doorbell: int) -> None:
    """Wake whoever sleeps on a doorbell; the system call is also the barrier that makes earlier writes visible."""
    os.write(doorbell, _ONE)


def sleep_until_rung(doorbell: int) -> None:
    """Sleep until the doorbell has been rung since the last call."""
    os.read(doorbell, 8)


def sleep_until_rung_or(seconds: float, doorbell: int) -> bool:
    """The same, but no longer than so many seconds; returns whether it was rung."""
    rung = bool(select.select([doorbell], [], [], seconds)[0])
    if rung:
        os.read(doorbell, 8)
    return rung


def linger(waiting: Callable[[], bool]) -> bool:
    """Look for work a little longer before sleeping, and let others run meanwhile; returns whether some came.

    A core that falls asleep wakes up cold: the next small batch then takes twice as long. So a process whose work is
    short lingers after it; one whose batches take milliseconds gains nothing, and an idle one sleeps.
    """
    until = time.perf_counter() + _LINGER
    while not (came := waiting()) and time.perf_counter() < until:
        os.sched_yield()
    return came


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends: prediction processes are children of the supervisor."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """End as soon as the parent does, however it ends; returns once `parent` is indeed the parent."""
    while os.getppid() != parent:
        # After a double fork it is adopted within microseconds; if the parent is gone, by somebody else.
        if not _alive(parent):
            os._exit(1)
        os.sched_yield()
    # Not before: the signal would come when the process between the two forks ends.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
