"""One kept-alive HTTP/1.1 connection to a shard: requests go out from where their rows lie, answers come back whole."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT_SECONDS = 1.0
_SILENT_MS = 5000
"""A peer that acknowledges nothing for so long is gone, and its node perhaps as well."""
_HEAD_BYTES = 16_384
_END = b"\r\n\r\n"
_MOST_PARTS = 512


class LostError(Exception):
    """There is no connection any more, or there never was one; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Its views hold until the next one is received."""

    status: int
    json: memoryview
    tensors: memoryview


class Link:
    """A connection."""

    def __init__(self, url: str, authorization: bytes, target: str, seconds: float) -> None:
        """Connect.

        Args:
            url: The shard's, e.g. ``http://host:8000``.
            authorization: Value of the header of that name.
            target: Where requests go.
            seconds: How long a peer that is there may take for anything.

        Raises:
            LostError: nobody answers there.
        """
        address = urlsplit(url)
        try:
            self._socket = socket.create_connection((address.hostname or "", address.port or 80), CONNECT_SECONDS)
        except OSError as error:
            raise LostError(error.strerror or str(error)) from error
        self._socket.settimeout(seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 2),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, _SILENT_MS),
        ):
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._head = (
            f"POST {target} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/octet-stream\r\n"
            "Authorization: "
        ).encode() + authorization
        self._buffer = bytearray(65_536)
        self.received = 0
        """Bytes of the last answer."""

    def fileno(self) -> int:
        """For poll: readable when an answer comes, or the end."""
        return self._socket.fileno()

    def patient(self, seconds: float) -> None:
        """From here on the peer may take so long for anything."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def send(self, json: bytes, tensors: Sequence[memoryview]) -> int:
        """Send a request; returns its bytes.

        Raises:
            LostError: the connection has ended.
        """
        body = len(json) + sum(len(tensor) for tensor in tensors)
        head = (
            self._head + f"\r\nInference-Header-Content-Length: {len(json)}\r\nContent-Length: {body}".encode() + _END
        )
        parts = [memoryview(head + json), *tensors]
        try:
            while parts:
                parts = _rest(parts, self._socket.sendmsg(parts[:_MOST_PARTS]))
        except OSError as error:
            raise LostError(error.strerror or str(error)) from error
        return len(head) + body

    def receive(self) -> Reply:
        """The answer to the request that was sent last.

        Raises:
            LostError: the connection ends before it does, or it is no HTTP.
        """
        filled = self._fill(0, 1)
        while (end := self._buffer.find(_END, 0, filled)) < 0:
            if filled > _HEAD_BYTES:
                raise LostError("an answer whose head does not end")
            filled = self._fill(filled, filled + 1)
        start = end + len(_END)
        try:
            status, fields = _parsed(bytes(self._buffer[:end]))
            length = int(fields.get(b"content-length", b"0"))
            json_bytes = int(fields.get(b"inference-header-content-length", length))
        except ValueError as error:
            raise LostError("an answer that is no HTTP") from error
        self.received = self._fill(filled, start + length)
        body = memoryview(self._buffer)[start : start + length]
        return Reply(status, body[:json_bytes], body[json_bytes:])

    def _fill(self, filled: int, wanted: int) -> int:
        """Read until so many bytes are there, or more."""
        if len(self._buffer) < wanted:
            grown = bytearray(max(wanted, 2 * len(self._buffer)))
            grown[:filled] = self._buffer[:filled]
            self._buffer = grown  # views of the old one may be held still
        view = memoryview(self._buffer)
        try:
            while filled < wanted:
                count = self._socket.recv_into(view[filled:])
                if not count:
                    raise LostError("the connection was closed")
                filled += count
        except OSError as error:
            raise LostError(error.strerror or str(error)) from error
        return filled


def _rest(parts: list[memoryview], sent: int) -> list[memoryview]:
    """What is left to send."""
    for i, part in enumerate(parts):
        if sent < len(part):
            return [part[sent:], *parts[i + 1 :]]
        sent -= len(part)
    return []


def _parsed(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    version, status, *_ = first.split(b" ", 2)
    if not version.startswith(b"HTTP/1."):
        raise ValueError("no HTTP")
    fields = (line.partition(b":") for line in lines)
    return int(status), {name.strip().lower(): value.strip() for name, _, value in fields}
