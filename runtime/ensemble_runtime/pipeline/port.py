"""What the pipeline offers to the gateway: leases of rows, outcomes, health and counters.

A request's life: `lease` rows -> fill its inputs -> `submit` -> one outcome -> read its outputs -> `release`.
All calls are made from one thread, the gateway's event loop, and none of them blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import RuntimeConfig


class Verdict(Enum):
    """How a request ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    MEMBER_FAILED = "member failed"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `missing` maps each member that is not in the answer to the reason."""

    verdict: Verdict
    missing: dict[str, str]

    @property
    def answered(self) -> bool:
        """Whether the outputs hold an answer."""
        return self.verdict in (Verdict.COMPLETE, Verdict.PARTIAL)


COMPLETE = Outcome(Verdict.COMPLETE, {})


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for. Times are in seconds from its arrival, its head's; None: as the configuration says."""

    priority: int = 0
    """Requests above 0 overtake those at 0."""
    timeout: float | None = None
    min_members: int | None = None
    """Quorum: fewest members of a partial answer; needs `deadline`."""
    deadline: float | None = None
    disagreement: bool = False
    individually: bool = False
    """Whether members' own outputs will be read."""
    age: float = 0.0
    """Seconds from the request's arrival to `submit`: what its body took, where that counts."""
    only: tuple[str, ...] | None = None
    """In a shard: the members that are asked; the combined output then means nothing."""


class OverloadedError(Exception):
    """The bounded queue has no room; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTooLargeError(Exception):
    """The request has more rows than the arena can ever hold."""


class Lease(Protocol):
    """The rows of one request in the arena."""

    rows: int

    def input(self, index: int) -> memoryview:
        """Writable bytes of an input: all rows, row-major, tightly packed, of the shape that was leased."""

    def output(self, index: int) -> NDArray[np.generic]:
        """Combined output, shape (rows, *shape); a view that holds until `release`."""

    def member_output(self, member: str, index: int) -> NDArray[np.generic]:
        """One member's own output, the same shape; only members that are not in `Outcome.missing`."""

    def disagreement(self) -> dict[str, NDArray[np.float32]]:
        """Per row: variance, predictive_entropy, mutual_information, vote_margin; if the options asked for it."""


@dataclass(frozen=True, slots=True)
class CellStatus:
    """One worker as the supervisor sees it, with counters since the pipeline started."""

    device: str
    member: str
    batch_size: int
    state: str
    """Starting, Loading, Warming, Ready, Failed (given up until its back-off ends)."""
    pid: int
    restarts: int
    batches: int
    rows: int
    busy_seconds: float
    errors: int
    observed_device: str
    """The real device: GPU UUID and PCI bus id, or the cores it is pinned to."""


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """One shard on another node as its head sees it, with counters since the pipeline started."""

    name: str
    url: str
    connections: int
    """Those that stand now."""
    requests: int
    sent_bytes: int
    received_bytes: int
    lost: int
    """Connections that ended."""


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    """How one shadow's predictions compare with the answers, since the gateway started."""

    name: str
    rows: int
    """Answered rows that it predicted as well."""
    agreeing: float | None
    """Those of the answer's class, where the first output tells classes; of a row of several, their share."""
    apart: float | None
    """Where it tells numbers: the mean distance of a row's from the answer's, added up over the rows."""


@dataclass(frozen=True, slots=True)
class Health:
    """The truth about the pipeline at this moment."""

    ready: bool
    reason: str
    """Empty when ready; else which members have no worker."""
    cells: tuple[CellStatus, ...]
    processes: dict[str, int]
    """Role -> pid of the pipeline's processes: supervisor, gateway, combiner, workers' forge."""
    queue_rows: dict[str, int]
    """Rows that wait for each member."""
    remotes: tuple[RemoteStatus, ...] = ()
    shadows: tuple[ShadowStatus, ...] = ()


L = TypeVar("L", bound=Lease)


class Pipeline(Protocol[L]):
    """The gateway's view of the pipeline; it takes back only leases of its own kind."""

    config: RuntimeConfig
    max_rows: int
    """Most rows of one request."""
    in_flight: int
    """Requests that hold a lease."""

    def lease(self, rows: int, shapes: Sequence[tuple[int, ...]]) -> L:
        """Take rows for a request whose inputs have these shapes (without the batch axis).

        Raises:
            OverloadedError: no room now.
            RequestTooLargeError: no room ever.
        """

    def submit(self, lease: L, options: Options, done: Callable[[Outcome], None]) -> None:
        """Send a filled lease on its way; the event loop calls `done` exactly once, unless it is cancelled first."""

    def cancel(self, lease: L) -> None:
        """Give a lease back at any time before its outcome; `done` will not be called."""

    def release(self, lease: L) -> None:
        """Give a lease back after its outcome; its outputs must not be read any more."""

    def health(self) -> Health:
        """The state of every process."""
