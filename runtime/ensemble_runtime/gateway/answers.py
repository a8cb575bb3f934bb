"""Answers: a status, a body and the few headers that say how to read it, in the shape that both lanes send."""

from __future__ import annotations

import gzip
import zlib
from http import HTTPStatus
from math import ceil

import orjson

from ensemble_runtime.gateway.refusal import Reason, RefusedError
from ensemble_runtime.pipeline.port import Outcome, Verdict

COMPRESS_FROM_BYTES = 1024
"""Below, coding costs more than it saves, and the answer fits a packet anyway."""

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Answer:
    """What goes back to the client.

    Attributes:
        status: The HTTP status.
        body: JSON, or JSON and the binary tensors.
        json_bytes: How much of the body is JSON; None if all of it.
        retry_after: For a Retry-After header, in seconds.
        coding: The content coding of the body; None: as it is.
        head: The response's head on a connection that stays, where it was prepared.
    """

    __slots__ = ("body", "coding", "head", "json_bytes", "retry_after", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        json_bytes: int | None = None,
        retry_after: float | None = None,
        coding: str | None = None,
        head: bytes | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.json_bytes = json_bytes
        self.retry_after = retry_after
        self.coding = coding
        self.head = head

    def headers(self) -> dict[str, str]:
        """All headers but Content-Length and Connection."""
        headers = {"Content-Type": "application/json"}
        if self.json_bytes is not None:
            headers["Content-Type"] = "application/octet-stream"
            headers["Inference-Header-Content-Length"] = str(self.json_bytes)
        if self.coding is not None:
            headers["Content-Encoding"] = self.coding
        if self.retry_after is not None:
            headers["Retry-After"] = str(ceil(self.retry_after))
        return headers

    def compressed(self, coding: str) -> Answer:
        """The same answer in gzip or deflate (in zlib's format, as RFC 9110 has it)."""
        body = gzip.compress(self.body, 1, mtime=0) if coding == "gzip" else zlib.compress(self.body, 1)
        return Answer(self.status, body, self.json_bytes, self.retry_after, coding)

    def response(self, keep_alive: bool) -> bytes:
        """The bytes of the whole HTTP/1.1 response."""
        if keep_alive and self.head is not None:
            return self.head + self.body
        return response_head(self, len(self.body), keep_alive) + self.body


def response_head(answer: Answer, content_length: int, keep_alive: bool) -> bytes:
    """The bytes of a response up to its body, the empty line included."""
    fields = answer.headers() | {"Content-Length": str(content_length)}
    if not keep_alive:
        fields["Connection"] = "close"
    lines = [f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def refused(error: RefusedError) -> Answer:
    """The answer to a request that gets no prediction."""
    return Answer(error.status, orjson.dumps({"error": error.message}), retry_after=error.retry_after)


def failed(outcome: Outcome) -> RefusedError:
    """A request that the members could not answer: which of them, and why."""
    members = "; ".join(f"{member}: {reason}" for member, reason in outcome.missing.items())
    if outcome.verdict is Verdict.TIMED_OUT:
        return RefusedError(504, f"timed out; missing members: {members}", Reason.TIMED_OUT)
    return RefusedError(500, f"members failed: {members}", Reason.MEMBER_FAILED)
