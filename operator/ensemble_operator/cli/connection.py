"""One keep-alive HTTP/1.1 connection for inference: little Python a request, so that the load is the server's."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ensemble_operator.cli.errors import ServerRefusedError, ServerUnreachableError
from ensemble_operator.cli.tensors import HEADER_LENGTH

_MAX_HEAD = 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came."""

    status: int
    body: bytes
    header_length: int | None
    """Bytes of JSON before the binary tensors; None: all of it is JSON."""
    retry_after: float | None
    """Seconds."""


class Connection(asyncio.Protocol):
    """Sends one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._head: Reply | None = None
        self._body_at = 0
        self._end = 0

    async def request(self, data: bytes) -> Reply:
        """Send a whole request and wait for its answer.

        Raises:
            ServerUnreachableError: The connection broke.
            ServerRefusedError: The answer is not HTTP with a Content-Length.
        """
        assert self._transport is not None
        if self._transport.is_closing():
            raise ServerUnreachableError("the server closed the connection")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._waiter

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self._fail(ServerUnreachableError(f"the connection broke: {error or 'the server closed it'}"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        if self._head is None:
            at = self._buffer.find(b"\r\n\r\n")
            if at < 0 and len(self._buffer) <= _MAX_HEAD:
                return
            try:
                self._head, length = _parse(bytes(self._buffer[: max(at, 0)]))
            except (ValueError, LookupError):
                self._fail(ServerRefusedError("the answer is not HTTP/1.1 with a Content-Length"))
                self.close()
                return
            self._body_at, self._end = at + 4, at + 4 + length
        if len(self._buffer) >= self._end:
            head, body = self._head, bytes(self._buffer[self._body_at : self._end])
            del self._buffer[: self._end]
            self._head = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(Reply(head.status, body, head.header_length, head.retry_after))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


async def connect(base: str) -> Connection:
    """Open a connection to http://host:port or https://host:port.

    Raises:
        ServerUnreachableError: Nobody answers there.
    """
    parts = urlsplit(base)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    try:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=secure)
    except OSError as error:
        raise ServerUnreachableError(f"no server answers at {base}: {error}") from error
    return connection


def _parse(head: bytes) -> tuple[Reply, int]:
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    header_length, retry_after = headers.get(HEADER_LENGTH.lower()), headers.get("retry-after")
    reply = Reply(
        int(status_line.split(" ")[1]),
        b"",
        None if header_length is None else int(header_length),
        None if retry_after is None else float(retry_after),
    )
    return reply, int(headers["content-length"])
