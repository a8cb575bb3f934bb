"""A bounded memory of what some bytes were parsed to."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Values by the exact bytes they were made from; beyond its bounds it forgets the oldest.

    Clients on keep-alive connections repeat their heads, and often their JSON headers, to the byte: looking them up
    replaces parsing them. What is used much and forgotten is simply parsed once more.
    """

    __slots__ = ("_entries", "_entry_bytes", "_most", "get")

    def __init__(self, most: int, entry_bytes: int) -> None:
        """Hold at most `most` entries, and none made from more than `entry_bytes` bytes."""
        self._entries: dict[bytes, V] = {}
        self._most = most
        self._entry_bytes = entry_bytes
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: bytes, value: V) -> None:
        """Remember `value`, unless its key is too long."""
        if len(key) > self._entry_bytes:
            return
        if len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = value
