"""The fast lane: plain infer requests over HTTP/1.1, with as little Python as possible between socket and arena.

Serves POST .../infer of the one ensemble with a Content-Length within the limit and neither transfer coding nor content
coding nor expectation. A connection that sends anything else is handed to aiohttp for good, with the bytes read so far.
One request at a time: what a client pipelines behind it waits, so that answers keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from ensemble_runtime.gateway.answers import COMPRESS_FROM_BYTES, Answer, refused
from ensemble_runtime.gateway.heads import HEAD_BYTES, Head, HeadReader
from ensemble_runtime.gateway.inference import INLINE_BYTES, Exchange, Inference
from ensemble_runtime.gateway.refusal import Reason, RefusedError, busy, internal, too_slow

SCRATCH_BYTES = 262_144
FIRST_BYTES = 8_192
"""Read at once where a request is to begin: a small one whole, of a large one little that has to be copied."""
HELD_BYTES = 65_536
"""A connection's bytes that wait for an answer to go out first; beyond, it is not read from."""

HEAD_SECONDS = 10.0
IDLE_SECONDS = 75.0
STALL_SECONDS = 60.0
"""A client that does not read its answer for longer is cut off."""

_END = b"\r\n\r\n"
_PREFIX = b"POST /v2/"


class Entrance:
    """What the connections of one event loop share.

    Attributes:
        inference: The handler.
        heads: Parsed heads.
        hand_over: Makes an aiohttp protocol for a connection that is not plain.
        crowded: Whether there are too many connections for another one.
        connections: Those in the fast lane.
        scratch: What is read lands here first. One buffer is enough for all: it is emptied before the next read.
        tick: Seconds, counted by `sweep`.
        leaving: Whether answers close their connections.
        draining: Whether connections close as soon as they may.
        empty: Set when the last of them is gone.
    """

    def __init__(
        self,
        inference: Inference,
        heads: HeadReader,
        hand_over: Callable[[], asyncio.Protocol],
        crowded: Callable[[], bool],
        leaving: asyncio.Event,
    ) -> None:
        self.inference = inference
        self.heads = heads
        self.hand_over = hand_over
        self.crowded = crowded
        self.connections: set[FastLane] = set()
        self.scratch = bytearray(SCRATCH_BYTES)
        self.scratch_view = memoryview(self.scratch)
        self.first_view = self.scratch_view[:FIRST_BYTES]
        self.tick = 0
        self.leaving = leaving
        self.draining = False
        self.empty = asyncio.Event()

    def leave(self, connection: FastLane) -> None:
        """This connection is not in the fast lane any more."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.empty.set()

    def sweep(self) -> None:
        """Call once a second: ends what has taken too long. One timer for all connections costs a request nothing."""
        self.tick += 1
        for connection in tuple(self.connections):
            connection.sweep()

    async def drain(self, seconds: float) -> None:
        """Close what is idle, let the others finish the request that they have begun, cut off what is left after."""
        self.draining = True
        self.leaving.set()
        for connection in tuple(self.connections):
            connection.drain()
        if self.connections:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.empty.wait(), seconds)
        for connection in tuple(self.connections):
            connection.abort()
        if self.connections:
            await self.empty.wait()


# What a connection waits for: a head, the rest of a body, the pipeline's answer, the client to read that answer.
_HEAD, _BODY, _ANSWER, _CLIENT = range(4)


class FastLane(asyncio.BufferedProtocol):
    """One connection."""

    __slots__ = (
        "_advancing",
        "_direct",
        "_entrance",
        "_exchange",
        "_head",
        "_held",
        "_missing",
        "_paused",
        "_since",
        "_stalled",
        "_state",
        "_transport",
    )

    _transport: asyncio.Transport
    _exchange: Exchange
    _head: Head

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._state = _HEAD
        self._held = bytearray()
        self._missing = 0
        self._direct = False
        self._stalled = False
        self._paused = False
        self._advancing = False
        self._since = entrance.tick

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        if self._entrance.crowded():
            self._refuse(busy("too many connections"))
        else:
            self._entrance.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: into the arena, if they belong there, else into the scratch buffer."""
        self._direct = False
        if self._state == _BODY and (room := self._exchange.room()) is not None:
            self._direct = True
            return room
        return self._entrance.scratch_view if self._state == _BODY else self._entrance.first_view

    def buffer_updated(self, count: int) -> None:
        """So many bytes came."""
        entrance = self._entrance
        if self._direct:
            self._exchange.filled(count)
            self._missing -= count
            if not self._missing:
                self._submit()
        elif self._held or self._state >= _ANSWER:
            self._hold(entrance.scratch_view[:count])
            self._resume()
        else:
            if self._state == _HEAD:
                self._since = entrance.tick
            self._advance(entrance.scratch, entrance.scratch_view[:count])

    def eof_received(self) -> None:
        """The client is gone and the transport closes; one that closes only half is taken for gone, as aiohttp does."""

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        self._stalled = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stalled = False
        if self._state == _CLIENT and not self._transport.is_closing():
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what it asked for is cancelled."""
        self._entrance.leave(self)
        if self._state in (_BODY, _ANSWER):
            self._exchange.cancel()
        self._state = _CLIENT
        self._held.clear()

    # What the entrance calls.

    def sweep(self) -> None:
        """End what has taken too long."""
        waited = self._entrance.tick - self._since
        if self._state == _BODY:
            limit = self._entrance.inference.receive_seconds
            if waited > limit:
                self._exchange.cancel(Reason.INVALID)
                self._refuse(too_slow(limit))
        elif self._state == _HEAD:
            if self._held and waited > HEAD_SECONDS:
                self._refuse(too_slow(HEAD_SECONDS))
            elif waited > IDLE_SECONDS:
                self._transport.close()
        elif self._state == _CLIENT and waited > STALL_SECONDS:
            self._transport.abort()

    def drain(self) -> None:
        """Close now if idle."""
        if self._state == _HEAD and not self._held:
            self._transport.close()

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._transport.abort()

    # The way of a request.

    def _advance(self, buffer: bytes | bytearray, view: memoryview) -> None:
        """Go as far as these bytes reach; `view` is the part of `buffer`, from its start, that holds them."""
        self._advancing = True
        at, end = 0, len(view)
        while at < end:
            if self._state == _BODY:
                count = min(self._missing, end - at)
                self._exchange.feed(view[at : at + count])
                at += count
                self._missing -= count
                if not self._missing:
                    self._submit()
            elif self._state == _HEAD:
                cut = buffer.find(_END, at, end) + len(_END)
                if cut < len(_END):
                    if end - at > HEAD_BYTES or not _may_be_plain(view[at:end]):
                        self._hand_over(bytes(view[at:end]))
                        return
                    break
                raw = bytes(view[at:cut])
                heads = self._entrance.heads
                head = heads.known(raw) or heads.read(raw)
                if head is None:
                    self._hand_over(bytes(view[at:end]))
                    return
                at = cut
                self._begin(head)
            else:
                break
        self._advancing = False
        if at < end:
            self._hold(view[at:end])

    def _begin(self, head: Head) -> None:
        self._head = head
        self._missing = head.length
        self._exchange = Exchange(self._entrance.inference, head.length, head.json_bytes)
        self._state = _BODY
        self._since = self._entrance.tick

    def _submit(self) -> None:
        exchange = self._exchange
        self._state = _ANSWER
        if exchange.heavy:
            decoding = asyncio.get_running_loop().run_in_executor(None, exchange.decode)
            decoding.add_done_callback(lambda _: self._decoded(exchange))
        else:
            exchange.submit(self._answer)

    def _decoded(self, exchange: Exchange) -> None:
        if self._state == _ANSWER:
            exchange.submit(self._answer)

    def _answer(self, answer: Answer) -> None:
        coding = self._head.coding
        if coding is not None and len(answer.body) >= COMPRESS_FROM_BYTES:
            self._compress(answer, coding)
        else:
            self._write(answer)

    def _compress(self, answer: Answer, coding: str) -> None:
        if len(answer.body) <= INLINE_BYTES:
            self._write(answer.compressed(coding))
            return
        compressing = asyncio.get_running_loop().run_in_executor(None, answer.compressed, coding)
        compressing.add_done_callback(
            lambda done: self._write(refused(internal()) if done.exception() else done.result())
        )

    def _write(self, answer: Answer) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        keep_alive = self._head.keep_alive and not self._entrance.leaving.is_set()
        transport.write(answer.response(keep_alive))
        self._since = self._entrance.tick
        self._state = _CLIENT
        if not keep_alive:
            transport.close()
        elif not self._stalled:
            self._next()

    def _next(self) -> None:
        """The answer is out: on to the next request."""
        self._state = _HEAD
        self._since = self._entrance.tick
        if self._entrance.draining:
            self._transport.close()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if not self._advancing:
            self._resume()

    def _resume(self) -> None:
        """Go on with the bytes that were held."""
        if self._held and self._state < _ANSWER:
            data = bytes(self._held)
            self._held.clear()
            self._advance(data, memoryview(data))

    def _hold(self, data: memoryview) -> None:
        self._held += data
        if len(self._held) > HELD_BYTES and self._state >= _ANSWER:
            self._paused = True
            self._transport.pause_reading()

    def _hand_over(self, data: bytes) -> None:
        entrance, transport = self._entrance, self._transport
        entrance.leave(self)
        protocol = entrance.hand_over()
        # uvloop chooses between buffered and plain reading when reading starts.
        transport.pause_reading()
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
        protocol.data_received(data)

    def _refuse(self, error: RefusedError) -> None:
        """Answer outside any request, and close."""
        self._state = _CLIENT
        self._since = self._entrance.tick
        self._transport.write(refused(error).response(keep_alive=False))
        self._transport.close()


def _may_be_plain(view: memoryview) -> bool:
    """Whether the beginning of a head can become one that the fast lane serves."""
    start = bytes(view[: len(_PREFIX)])
    return _PREFIX.startswith(start)
