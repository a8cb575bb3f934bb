"""How a cell takes work: from the queues of its member, together with the member's other cells.

The gateway appends to a member's queues without a lock; its cells take under a POSIX record lock on the arena's file,
which the kernel releases when its holder dies. What is taken stands in the cell's journal until it is reported, so that
the supervisor knows to the entry what died with a process.
"""

from __future__ import annotations

import fcntl
from array import array
from bisect import bisect_right
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.pipeline.arena import ARRIVED, ENTRY_BYTES, Arena, Journal, Ring

Entries = NDArray[np.uint32]
"""(k, 4): request slot, first row, row count, attempts so far (in a queue) or code (in a report)."""

AGAIN, HIGH, NORMAL = range(3)

# Words of a journal.
COUNT, REPORT_TAIL, RING, START = range(4)


class Intake:
    """One cell's side of its member's queues."""

    def __init__(self, arena: Arena, cell: int) -> None:
        config = arena.config
        self.member = config.member_of(cell)
        cells = config.cells_of(config.cells[cell].member)
        self._arena = arena
        self._cell = cell
        self._rings = arena.queues[self.member]
        self._limit = config.cells[cell].batch_size
        self._alone = len(cells) == 1
        self._process = arena.geometry.process_of(cell)
        self._siblings = [
            p for p, hosted in enumerate(arena.geometry.processes) if cell not in hosted and set(hosted) & set(cells)
        ]
        self._journal = arena.journals[cell]
        self._in_hand = self._journal.entries.cast("I")
        self._reports = arena.reports[cell]
        self._arrived = memoryview(array("I", [ARRIVED] * self._limit))
        self._lock = MemberLock(arena, self.member, cell)

    def waiting(self) -> int:
        """Entries that nobody has taken yet."""
        again, high, normal = self._rings
        return len(again) + len(high) + len(normal)

    def waiting_rows(self) -> int:
        """Rows of the entries that nobody has taken yet."""
        rows = 0
        for ring in self._rings:
            if waiting := len(ring):
                rows += sum(ring.rows(waiting))
        return rows

    def take(self) -> int:
        """Take a fair share of what waits, up to the batch size in rows; returns how many entries are in hand now."""
        if not self.waiting():
            return 0
        if self._alone:
            return self._take()
        with self._lock:
            return self._take()

    def words(self, count: int) -> list[int]:
        """The words of so many entries in hand, four each: between batches that fill the caches numpy comes dear."""
        return self._in_hand[: 4 * count].tolist()

    def entries(self, count: int) -> Entries:
        """A copy of so many entries in hand."""
        return np.array(self._in_hand[: 4 * count], np.uint32).reshape(-1, 4)

    def _take(self) -> int:
        for index, ring in enumerate(self._rings):
            if waiting := len(ring):
                count = self._share(index, ring, waiting)
                self._claim(index, ring, count)
                return count
        return 0

    def _share(self, index: int, ring: Ring, waiting: int) -> int:
        # What was in hand when a process died runs alone, so that it can take no other request down with it.
        if index == AGAIN or waiting == 1:
            return 1
        idle = self._arena.idle
        workers = 1 + sum([idle[process] for process in self._siblings])
        return _within(ring.rows(min(-(-waiting // workers), self._limit)), self._limit)

    def _claim(self, index: int, ring: Ring, count: int) -> None:
        words, start = self._journal.words, ring.head
        ring.copy(count, self._journal.entries)
        words[RING] = index
        words[START] = start
        words[REPORT_TAIL] = self._reports.tail
        words[COUNT] = count
        # Before the entries leave the queue: whoever counts them as taken must count this process as busy.
        self._arena.idle[self._process] = 0
        ring.head = start + count

    def report(self, entries: Entries) -> None:
        """Publish what became of all that was taken; the last column holds a code for each entry."""
        self._reports.push(entries.view("u1").reshape(-1).data)
        self._journal.words[COUNT] = 0

    def report_arrived(self, count: int) -> None:
        """Publish that all rows of all that was taken are there."""
        report = bytearray(self._journal.entries[: count * ENTRY_BYTES])
        memoryview(report).cast("I")[3::4] = self._arrived[:count]
        self._reports.push(report)
        self._journal.words[COUNT] = 0


def _within(rows: list[int], limit: int) -> int:
    """How many of these entries come to no more than so many rows; at least one."""
    if sum(rows) <= limit:
        return len(rows)
    return max(1, bisect_right(list(accumulate(rows)), limit))


class MemberLock:
    """The lock of a member's queues. Whoever finds that the last holder died in it settles that holder's claim."""

    def __init__(self, arena: Arena, member: int, cell: int) -> None:
        self._arena = arena
        self._member = member
        self._cell = cell

    def __enter__(self) -> None:
        fcntl.lockf(self._arena.fd, fcntl.LOCK_EX, 1, self._member)
        owner = self._arena.lock_owner
        if dead := owner[self._member]:
            _settle(self._arena, self._member, dead - 1)
        owner[self._member] = self._cell + 1

    def __exit__(self, *_: object) -> None:
        self._arena.lock_owner[self._member] = 0
        fcntl.lockf(self._arena.fd, fcntl.LOCK_UN, 1, self._member)


def recover(arena: Arena, cell: int) -> Entries:
    """What a dead cell had taken and not reported; its journal is cleared. Call it with the member's lock held."""
    words = arena.journals[cell].words
    count = words[COUNT]
    reported = arena.reports[cell].tail != words[REPORT_TAIL]
    member = arena.config.member_of(cell)
    taken = arena.queues[member][words[RING]].head > words[START]
    lost = count if taken and not reported else 0
    entries = np.frombuffer(arena.journals[cell].entries, "u4").reshape(-1, 4)[:lost].copy()
    words[COUNT] = 0
    return entries


def clear(journal: Journal) -> None:
    """Nothing is in hand any more."""
    journal.words[COUNT] = 0


def _settle(arena: Arena, member: int, cell: int) -> None:
    """A cell died inside the lock: a claim whose entries it had not removed from the queue yet is void."""
    if cell < len(arena.journals):
        words = arena.journals[cell].words
        if arena.queues[member][words[RING]].head <= words[START]:
            words[COUNT] = 0
