"""What both lanes count: plain integers, read when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from time import perf_counter_ns, time

from ensemble_runtime.gateway.refusal import Reason

BOUNDS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram's buckets, all but the last, which has none."""

_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_SECONDS)


class Counters:
    """Requests since the gateway started. Durations are in nanoseconds.

    Attributes:
        succeeded: Requests answered with a prediction; `partial` of them without all members.
        rows: Rows of these.
        failed: Requests without a prediction, by reason, and `failed_ns`, their time.
        missing: By member, the requests that it was missing from.
        request_ns: Time of the successful requests, from their head to their answer; the sum of `receive_ns` (the body
            into the arena), `pipeline_ns` (queues, members, combination) and `encode_ns`.
        buckets: Successful requests by their time; bounds as in `BOUNDS_SECONDS`.
    """

    __slots__ = (
        "_last_ns",
        "buckets",
        "encode_ns",
        "failed",
        "failed_ns",
        "missing",
        "partial",
        "pipeline_ns",
        "receive_ns",
        "request_ns",
        "rows",
        "succeeded",
    )

    def __init__(self, members: Iterable[str]) -> None:
        self.succeeded = 0
        self.partial = 0
        self.rows = 0
        self.failed = dict.fromkeys(Reason, 0)
        self.failed_ns = 0
        self.missing = dict.fromkeys(members, 0)
        self.request_ns = 0
        self.receive_ns = 0
        self.pipeline_ns = 0
        self.encode_ns = 0
        self.buckets = [0] * (len(BOUNDS_SECONDS) + 1)
        self._last_ns: int | None = None

    def success(self, rows: int, started: int, submitted: int, finished: int) -> None:
        """Count a request that is answered now; times are of `perf_counter_ns`."""
        now = perf_counter_ns()
        total = now - started
        self.succeeded += 1
        self.rows += rows
        self.request_ns += total
        self.receive_ns += submitted - started
        self.pipeline_ns += finished - submitted
        self.encode_ns += now - finished
        self.buckets[bisect_left(_BOUNDS_NS, total)] += 1
        self._last_ns = now

    def failure(self, reason: Reason, started: int) -> None:
        """Count a request that ends now without a prediction."""
        now = perf_counter_ns()
        self.failed[reason] += 1
        self.failed_ns += now - started
        self._last_ns = now

    def lacked(self, members: Iterable[str]) -> None:
        """Count the members that an answer, or a failure, had to do without."""
        for member in members:
            self.missing[member] = self.missing.get(member, 0) + 1

    def last_inference_ms(self) -> int:
        """When the last request ended, in milliseconds since the epoch; 0 if there was none."""
        if self._last_ns is None:
            return 0
        return round((time() - (perf_counter_ns() - self._last_ns) / 1e9) * 1e3)
