"""A request that gets no prediction: its status, and the one line that the client reads."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why requests fail, as the metrics tell it."""

    INVALID = "invalid"
    REJECTED = "rejected"
    CANCELED = "canceled"
    MEMBER_FAILED = "member_failed"
    TIMED_OUT = "timed_out"
    INTERNAL = "internal"


class RefusedError(Exception):
    """The request ends with this status and message.

    Attributes:
        status: The HTTP status.
        message: For the client: what is wrong, what was expected, what to do.
        reason: For the metrics.
        retry_after: In seconds; sent along when trying again makes sense.
    """

    def __init__(self, status: int, message: str, reason: Reason, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after = retry_after


def invalid(message: str) -> RefusedError:
    """The request itself is wrong: 400."""
    return RefusedError(400, message, Reason.INVALID)


def not_found(message: str) -> RefusedError:
    """No such model or version: 404."""
    return RefusedError(404, message, Reason.INVALID)


def too_slow(seconds: float) -> RefusedError:
    """The request did not arrive in time: 408."""
    return RefusedError(408, f"the request took longer than {seconds:g} s to arrive", Reason.INVALID)


def too_large(limit: int) -> RefusedError:
    """The body is beyond the limit: 413."""
    message = f"the body is larger than {limit} bytes (serving.maxBodyMib), also after decompression; send fewer rows"
    return RefusedError(413, message, Reason.INVALID)


def busy(message: str, retry_after: float = 1.0) -> RefusedError:
    """No room or not ready at the moment: 503 with Retry-After."""
    return RefusedError(503, message, Reason.REJECTED, retry_after)


def internal() -> RefusedError:
    """A fault of ours: 500. What happened stands in the log, not in the answer."""
    return RefusedError(500, "internal error; the server's log tells more", Reason.INTERNAL)
