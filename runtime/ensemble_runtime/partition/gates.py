"""How one process tells another that a tensor is ready, in a microsecond or two.

The devices of a partition are two processes, not two threads: of two threads that tell each other something after every
chunk of a layer, both want Python's global lock in the same moment, and the one that comes second sleeps and has to be
woken, 30 us that the other one then waits for. Whoever waits here looks at a word of shared memory, for about 1 ms, and
only then says that it sleeps, until its bell is rung. Nobody else's is rung: the call to the kernel takes 1 us, and
slows down what is computed after it by 2 more.
"""

from __future__ import annotations

import mmap
import os
import platform
import select
from threading import Lock

LINE = 64
"""Bytes of a gate: a cache line of its own, since one process writes what the other one watches."""
_LOOKS = range(20_000)
"""At a word; one takes about 50 ns."""
_MOST = 2**32
_A_MOMENT = 1
"""Milliseconds."""
_STORES_IN_ORDER = platform.machine() in {"x86_64", "AMD64"}
"""Whether this processor shows what it writes, and reads what others write, in the program's order."""


def lines(shared: mmap.mmap, size: int) -> memoryview:
    """The gates at the beginning of shared memory: a word of each of its cache lines."""
    return memoryview(shared)[:size].cast("I")[:: LINE // 4]


def following(turn: int) -> int:
    """The turn after a turn; never 0, which is what gates hold at first."""
    return turn % (_MOST - 1) + 1


class Bells:
    """One process's end: it opens gates for the other one, and waits for those that the other one opens.

    A gate is open for the turn whose number is in it; so it need not be closed again.
    """

    def __init__(self, own: int, other: int, peer: int, asleep: tuple[memoryview, memoryview]) -> None:
        """An end.

        Args:
            own: An eventfd that the other process writes to.
            other: The one that it reads.
            peer: A socket that the other process holds the far end of; it is readable only if something was said, or
                if the process is gone.
            asleep: A word of shared memory in which this process says that it sleeps, and one for the other.
        """
        self._own, self._other, self._peer = own, other, peer
        self._asleep, self._other_asleep = asleep
        self._poll = select.poll()
        for descriptor in (own, peer):
            self._poll.register(descriptor, select.POLLIN)
        self._lock = Lock()
        self._lock.acquire()

    def open(self, gates: memoryview, gate: int, turn: int) -> None:
        """Let the other process pass, and wake it up if it sleeps.

        Between two chunks both devices wait for this: whoever sleeps looks twice, so that no fence is needed behind.

        Args:
            gates: Of `lines`.
            gate: Which one.
            turn: For which turn.
        """
        if not _STORES_IN_ORDER:
            self._fence()
        gates[gate] = turn
        if self._other_asleep[0]:
            os.eventfd_write(self._other, 1)

    def seen(self, gates: memoryview, gate: int, turn: int) -> bool:
        """Whether a gate is open."""
        if gates[gate] != turn:
            return False
        if not _STORES_IN_ORDER:
            self._fence()
        return True

    def passed(self, gates: memoryview, gate: int, turn: int) -> bool:
        """Whether a gate is open, or becomes so within about 1 ms."""
        for _ in _LOOKS:
            if gates[gate] == turn:
                if not _STORES_IN_ORDER:
                    self._fence()
                return True
        return False

    def sleep(self, gates: memoryview, gate: int, turn: int) -> bool:
        """Sleep until a gate is open, or the bell is rung for another reason; returns whether the other one speaks."""
        self._asleep[0] = 1
        self._fence()
        ready: set[int] = set()
        try:
            # Whoever opened the gate in this moment may not have seen yet that this process sleeps, nor this process
            # what was written to the gate; a millisecond later it has long arrived.
            for patience in (_A_MOMENT, None):
                if gates[gate] == turn:
                    return False
                ready = {descriptor for descriptor, _ in self._poll.poll(patience)}
                if ready:
                    break
        finally:
            self._asleep[0] = 0
        if self._own in ready:
            os.eventfd_read(self._own)
        return self._peer in ready

    def wait(self, gates: memoryview, gate: int, turn: int) -> None:
        """Pass a gate as soon as it is open.

        Raises:
            SystemExit: The other process is gone; what it held is lost, and this one has to begin anew.
        """
        while not self.passed(gates, gate, turn):
            if self.sleep(gates, gate, turn) and gates[gate] != turn:
                raise SystemExit("the process of the other device is gone")

    def _fence(self) -> None:
        """Neither processor nor compiler may move what was written before behind what is written next."""
        self._lock.release()
        self._lock.acquire()
