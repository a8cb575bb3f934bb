"""The measured cost of one member on one device type."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_runtime.config import Partition


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One batch size: seconds of a batch, and the peak bytes that the cell holds (model and working memory)."""

    batch_size: int
    seconds: float
    memory_bytes: int
    second_bytes: int = 0
    """Of a member on a pair of devices: what it holds on the second."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Points by rising batch size, of one (model digest, device type, precision, partition)."""

    digest: str
    device_type: str
    precision: str
    points: tuple[Point, ...]
    partition: Partition | None = None
    """Of a pair of devices: what the split was to be best at; None of a pair, written by hand: whatever it is."""

    @property
    def middle(self) -> Point:
        """The point at which pairs are measured."""
        return self.points[len(self.points) // 2]

    def at(self, batch_size: int) -> Point | None:
        """The point measured at exactly this batch size."""
        return next((p for p in self.points if p.batch_size == batch_size), None)
