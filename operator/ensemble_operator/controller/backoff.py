"""Pauses after failures: each longer than the one before, until something works again."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

_REMEMBERED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Failure:
    """What failed, how often in a row, and until when it rests (of a monotonic clock)."""

    message: str
    count: int
    until: float


class Backoff:
    """Failures by what failed. Times are given, in seconds of a monotonic clock."""

    def __init__(self, first: float = 1.0, longest: float = 300.0) -> None:
        """`first` and `longest`: seconds of the pauses."""
        self._first, self._longest = first, longest
        self._failures: dict[Hashable, Failure] = {}
        self._looked = -math.inf

    def failed(self, key: Hashable, message: str, now: float) -> None:
        """It failed (once more)."""
        count = self._failures[key].count + 1 if key in self._failures else 1
        pause = min(self._longest, self._first * 2.0 ** min(count - 1, 30))
        self._failures[key] = Failure(message, count, now + pause)

    def worked(self, key: Hashable) -> None:
        """It worked: the next failure is the first again."""
        self._failures.pop(key, None)

    def waits(self, key: Hashable, now: float) -> bool:
        """Whether it failed and its pause is not over."""
        failure = self._failures.get(key)
        return failure is not None and now < failure.until

    def resting(self, now: float) -> dict[Hashable, str]:
        """What failed and rests, with what was said."""
        return {key: failure.message for key, failure in self._failures.items() if now < failure.until}

    def has(self, key: Hashable) -> bool:
        """Whether it failed last."""
        return key in self._failures

    def look(self, now: float) -> None:
        """Everything whose pause is over now is being tried again; what failed long ago is forgotten."""
        self._looked = now
        for key in [k for k, f in self._failures.items() if f.until + _REMEMBERED_SECONDS < now]:
            del self._failures[key]

    def next_due(self) -> float:
        """When the next pause ends since the last look; infinity where there is none."""
        return min((f.until for f in self._failures.values() if f.until > self._looked), default=math.inf)
