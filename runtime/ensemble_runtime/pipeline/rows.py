"""Which rows of the arena are free."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class RowAllocator:
    """Hands out contiguous runs of rows, first fit, and joins what comes back with its neighbours.

    Single rows, the common case on the fast path, are kept on a stack of their own and reused last in, first out, while
    their input is still in the processor's cache; they are joined again when a run asks for more than there is.
    """

    def __init__(self, rows: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """Of `rows` rows all are free but those of the runs (start, count) that are taken."""
        self.free = 0
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._singles: list[int] = []
        begin = 0
        for start, count in (*sorted(taken), (rows, 0)):
            if start > begin:
                self.give(begin, start - begin)
            begin = start + count

    def take(self, count: int) -> int | None:
        """First row of a run of `count` rows, or None if there is no such run."""
        if count == 1 and self._singles:
            self.free -= 1
            return self._singles.pop()
        start = self._first_fit(count)
        if start is None and self._singles:
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

    def _join_singles(self) -> None:
        singles, self._singles = self._singles, []
        for row in singles:
            self._insert(row, 1)

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
