"""Queue entries: what a member's queue says of the rows of a request."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

ENTRY = Struct("<IIII")
"""Request slot, first row, row count, attempts so far."""


def segments(requests: Iterable[tuple[int, int, int]], size: int) -> bytes:
    """Entries of at most `size` rows each for requests, given as (slot, first row, rows)."""
    return b"".join(
        ENTRY.pack(slot, first, min(size, base + rows - first), 0)
        for slot, base, rows in requests
        for first in range(base, base + rows, size)
    )
