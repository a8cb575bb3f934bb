"""Limits and habits of serving, as manifest and configuration have them. Read from `config`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ensemble_runtime.words import Hosting, Rule, Schema

LONGEST_MS = 3_600_000
"""The longest time that can be stated."""


class Quorum(Schema):
    """When an answer may leave without all members."""

    min_members: int = Field(ge=1, description="Fewest members that an answer may be made of.")
    deadline_ms: float = Field(
        gt=0, le=LONGEST_MS, description="From the end of the request's head; then the answer leaves."
    )


_LEAST_PATIENCE_MS = 5_000


class Serving(Schema):
    """Limits and habits of serving."""

    timeout_ms: float = Field(
        30_000, gt=0, le=LONGEST_MS, description="A request's time, its body and queueing included."
    )
    batch_delay_ms: float = Field(
        0,
        ge=0,
        le=10_000,
        description="How long an idle worker waits for a fuller batch; 0: batches form while workers are busy.",
    )
    queue_requests: int = Field(1024, ge=1, le=65_536, description="Most requests in the pipeline; more get 503.")
    queue_rows: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="Most rows in the pipeline and in one request; default: what 256 MiB hold, from 64 to 8192.",
    )
    max_body_mib: int = Field(64, ge=1, le=16_384, description="Largest request body, also after decompression.")
    member_timeout_ms: float | None = Field(
        None,
        gt=0,
        le=LONGEST_MS,
        description=(
            "A member that computes longer on one batch is taken for hung and restarted; "
            "default: a third of timeoutMs, at least 5000 and three times the plan's slowest batch."
        ),
    )
    startup_timeout_ms: float = Field(600_000, gt=0, description="Loading and warm-up of a member may take this long.")
    drain_ms: float = Field(10_000, ge=0, le=LONGEST_MS, description="On stop, requests in flight get this long.")
    quorum: Quorum | None = Field(None, description="Without it an answer needs every member.")
    hosting: Hosting = Field(Hosting.PER_CELL, description="Cells that share a prediction process.")

    def contradictions(self, rule: Rule, combined: int) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Why a rule over so many members cannot be served so: the path of each fault, and what was expected."""
        if (quorum := self.quorum) is None:
            return
        path = ("serving", "quorum")
        if rule is Rule.STACKING:
            yield path, "rule Stacking needs the values of every member; remove the quorum, or choose another rule"
        if quorum.min_members > combined:
            got = f"got {quorum.min_members}"
            yield (*path, "minMembers"), f"{got}, expected at most {combined}, the members that are combined"
        if quorum.deadline_ms >= self.timeout_ms:
            got = f"got {quorum.deadline_ms:g}"
            yield (*path, "deadlineMs"), f"{got}, expected less than serving.timeoutMs, {self.timeout_ms:g}"

    @property
    def patience(self) -> float:
        """Seconds of one batch after which a member is taken for hung.

        By default a third of a request's time: what hangs is tried once more alone, and those behind it have the last
        third. Whatever is waited for, a process that the kernel only holds up for a while is not to be killed.
        """
        return (self.member_timeout_ms or max(self.timeout_ms / 3, _LEAST_PATIENCE_MS)) / 1000
