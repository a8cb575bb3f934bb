"""Which rows of the arena are free."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

_STRIP = 16


class RowAllocator:
    """Hands out contiguous runs of rows, first fit, and joins what comes back with its neighbours.

    Single rows, the common case on the fast path, come from a strip, one after the other: requests that arrive together
    are neighbours then, and cells read them in place. What comes back is joined when the strip is used up, and the next
    one is the lowest that will do, so that not more rows are in use than the processor's cache may hold.
    """

    def __init__(self, rows: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """Of `rows` rows all are free but those of the runs (start, count) that are taken."""
        self.free = 0
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._strip: list[int] = []
        """Rows that go out next, from the end."""
        self._singles: list[int] = []
        begin = 0
        for start, count in (*sorted(taken), (rows, 0)):
            if start > begin:
                self.give(begin, start - begin)
            begin = start + count

    def take(self, count: int) -> int | None:
        """First row of a run of `count` rows, or None if there is no such run."""
        if count == 1:
            if not self._strip:
                self._lay_strip()
            if not self._strip:
                return None
            self.free -= 1
            return self._strip.pop()
        start = self._first_fit(count)
        if start is None and (self._singles or self._strip):
            self._join_singles()
            start = self._first_fit(count)
        if start is not None:
            self.free -= count
        return start

    def give(self, start: int, count: int) -> None:
        """Take back a run that `take` handed out."""
        self.free += count
        if count == 1:
            self._singles.append(start)
        else:
            self._insert(start, count)

    def _first_fit(self, count: int) -> int | None:
        for i, length in enumerate(self._lengths):
            if length >= count:
                start = self._starts[i]
                if length == count:
                    del self._starts[i], self._lengths[i]
                else:
                    self._starts[i] = start + count
                    self._lengths[i] = length - count
                return start
        return None

    def _lay_strip(self) -> None:
        self._join_singles()
        lengths = self._lengths
        if lengths:
            count = min(_STRIP, max(lengths))
            start = self._first_fit(count)
            assert start is not None
            self._strip = list(range(start + count - 1, start - 1, -1))

    def _join_singles(self) -> None:
        singles = sorted(self._singles + self._strip)
        self._singles, self._strip = [], []
        first = 0
        for place in range(1, len(singles) + 1):
            if place == len(singles) or singles[place] != singles[place - 1] + 1:
                self._insert(singles[first], place - first)
                first = place

    def _insert(self, start: int, count: int) -> None:
        starts, lengths = self._starts, self._lengths
        i = bisect_left(starts, start)
        if i < len(starts) and start + count == starts[i]:
            count += lengths[i]
            del starts[i], lengths[i]
        if i and starts[i - 1] + lengths[i - 1] == start:
            lengths[i - 1] += count
        else:
            starts.insert(i, start)
            lengths.insert(i, count)
