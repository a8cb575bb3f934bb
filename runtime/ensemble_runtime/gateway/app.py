"""The aiohttp lane: every endpoint of the protocol, and infer for all that is not plain enough for the fast lane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any, cast

import orjson
from aiohttp import ClientError, web

from ensemble_runtime.gateway import documents
from ensemble_runtime.gateway.answers import COMPRESS_FROM_BYTES, Answer, refused
from ensemble_runtime.gateway.exposition import CONTENT_TYPE, exposition
from ensemble_runtime.gateway.fastlane import HEAD_SECONDS, IDLE_SECONDS, STALL_SECONDS
from ensemble_runtime.gateway.heads import parse_length, preferred_coding
from ensemble_runtime.gateway.inference import INLINE_BYTES, Exchange, Inference
from ensemble_runtime.gateway.refusal import Reason, RefusedError, busy, internal, invalid, too_large, too_slow
from ensemble_runtime.pipeline.remote_wire import TARGET

INDEX_BYTES = 4096
"""Largest body of a repository index request."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_logger = logging.getLogger(__name__)


def build_app(inference: Inference) -> web.Application:
    """The application over one ensemble."""
    endpoints = Endpoints(inference)
    shard = inference.config.shard is not None
    app = web.Application(middlewares=[errors_as_json])
    for paths, method, handler in (
        (_of_model("/infer"), "POST", endpoints.not_here if shard else endpoints.infer),
        ((TARGET,) if shard else (), "POST", endpoints.infer_for_head),
        (("/v2", "/v2/"), "GET", endpoints.server),
        (("/v2/health/live",), "GET", endpoints.live),
        (("/v2/health/ready",), "GET", endpoints.ready),
        (("/v2/models",), "GET", endpoints.models),
        (("/v2/models/stats", *_of_model("/stats")), "GET", endpoints.statistics),
        (_of_model(""), "GET", endpoints.metadata),
        (_of_model("/ready"), "GET", endpoints.model_ready),
        (_of_model("/config"), "GET", endpoints.config),
        (("/v2/repository/index",), "POST", endpoints.index),
        (("/v2/ensemble/devices",), "GET", endpoints.devices),
        (("/metrics",), "GET", endpoints.metrics),
    ):
        for path in paths:
            app.router.add_route(method, path, handler, expect_handler=_expect)
    return app


class Endpoints:
    """What the paths lead to."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._pipeline = inference.pipeline
        self._config = inference.config

    async def server(self, request: web.Request) -> web.Response:
        """Server metadata."""
        return _json(documents.server_metadata())

    async def live(self, request: web.Request) -> web.Response:
        """Whether the event loop turns."""
        return _json({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """Whether every member has a worker; 503 with the reason if not."""
        health = self._pipeline.health()
        document: dict[str, Any] = {"live": True, "ready": health.ready}
        if health.ready:
            return _json(document)
        return _json(document | {"error": f"not ready: {health.reason}"}, 503)

    async def models(self, request: web.Request) -> web.Response:
        """The one model's name."""
        return _json({"models": [self._config.name]})

    async def metadata(self, request: web.Request) -> web.Response:
        """Inputs and outputs."""
        self._check(request)
        return _json(documents.model_metadata(self._config))

    async def model_ready(self, request: web.Request) -> web.Response:
        """Whether the ensemble serves."""
        self._check(request)
        health = self._pipeline.health()
        if not health.ready:
            raise busy(f"model '{self._config.name}' is not ready: {health.reason}")
        return _json({"name": self._config.name, "ready": True})

    async def config(self, request: web.Request) -> web.Response:
        """The configuration in Triton's words."""
        self._check(request)
        return _json(documents.model_config(self._config, self._pipeline.max_rows))

    async def statistics(self, request: web.Request) -> web.Response:
        """What was served so far."""
        if "model" in request.match_info:
            self._check(request)
        return _json(documents.statistics(self._config, self._inference.counters, self._pipeline.health()))

    async def index(self, request: web.Request) -> web.Response:
        """The model repository, which holds one model."""
        raw = bytearray()

        def take(chunk: bytes) -> bool:
            raw.extend(chunk)
            return len(raw) <= INDEX_BYTES

        if (request.content_length or 0) <= INDEX_BYTES:
            await _receive(request, self._inference.receive_seconds, take)
        if max(request.content_length or 0, len(raw)) > INDEX_BYTES:
            raise RefusedError(413, f"the body is larger than {INDEX_BYTES} bytes", Reason.INVALID)
        try:
            document = orjson.loads(raw) if raw.strip() else {}
        except orjson.JSONDecodeError as error:
            raise invalid(f"the request is not valid JSON: {error}") from None
        only_ready = document.get("ready", False) if isinstance(document, dict) else None
        if not isinstance(only_ready, bool):
            raise invalid("expected a JSON object with `ready`: true or false")
        return _json(documents.repository_index(self._config, self._pipeline.health(), only_ready))

    async def devices(self, request: web.Request) -> web.Response:
        """The real devices behind those of the configuration."""
        return _json(documents.devices(self._config))

    async def metrics(self, request: web.Request) -> web.Response:
        """Counters for Prometheus."""
        body = exposition(self._pipeline, self._inference.counters)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def infer(self, request: web.Request) -> web.Response:
        """Inference, with content codings both ways."""
        self._check(request)
        return await self._infer(request)

    async def infer_for_head(self, request: web.Request) -> web.Response:
        """Inference in a shard, for who knows the ensemble's token."""
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if not compare_digest(given, self._inference.authorization or b""):
            raise RefusedError(403, "a shard answers only to its ensemble; the token is wrong", Reason.INVALID)
        return await self._infer(request)

    async def not_here(self, request: web.Request) -> web.Response:
        """Inference in a shard, for anybody else."""
        raise RefusedError(403, f"this is a shard of '{self._config.name}'; ask its head", Reason.INVALID)

    async def _infer(self, request: web.Request) -> web.Response:
        inference = self._inference
        coding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "deflate"):
            raise RefusedError(415, f"Content-Encoding: expected gzip or deflate, got '{coding[:80]}'", Reason.INVALID)
        length = request.content_length if coding == "identity" else None
        if length is not None and length > inference.max_body:
            raise too_large(inference.max_body)
        json_bytes = request.headers.get("Inference-Header-Content-Length")
        exchange = Exchange(inference, length, None if json_bytes is None else parse_length(json_bytes.strip()))
        try:
            answer = await self._run(exchange, request)
        finally:
            # When the client goes, aiohttp cancels this task: then the rows are given back here.
            exchange.cancel()
        return _response(await _coded(answer, request))

    async def _run(self, exchange: Exchange, request: web.Request) -> Answer:
        def take(chunk: bytes) -> bool:
            exchange.feed(memoryview(chunk))
            return not exchange.refused

        try:
            await _receive(request, self._inference.receive_seconds, take)
        except RefusedError as error:
            exchange.cancel(error.reason)
            return refused(error)
        loop = asyncio.get_running_loop()
        if exchange.heavy:
            await loop.run_in_executor(None, exchange.decode)
        answered: asyncio.Future[Answer] = loop.create_future()
        exchange.submit(lambda answer: None if answered.done() else answered.set_result(answer))
        return await answered

    def _check(self, request: web.Request) -> None:
        self._inference.check_model(request.match_info["model"], request.match_info.get("version"))


class JsonRequestHandler(web.RequestHandler):
    """aiohttp's connection, with the fast lane's limits, and its own refusals (a malformed head, above all) in JSON."""

    __slots__ = ("_begun", "_link", "_stalled", "_waited")

    _link: asyncio.Transport

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **settings: Any) -> None:
        """See `web.RequestHandler`."""
        super().__init__(manager, loop=loop, **settings)
        self._begun = True
        """Whether the beginning of a head is there; it is what brings a connection into this lane."""
        self._stalled = False
        self._waited = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection comes over from the fast lane."""
        self._link = cast(asyncio.Transport, transport)  # aiohttp forgets it when it closes, not when it is closed
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or of a body."""
        if data and self._waiter is not None and not self._begun:
            self._begun, self._waited = True, 0
        super().data_received(data)
        if self._messages:
            self._begun = False
            if not self._stalled:
                self._waited = 0

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        self._stalled, self._waited = True, 0
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stalled, self._waited = False, 0
        super().resume_writing()

    def sweep(self) -> None:
        """Call once a second: ends what has taken too long, but for the body, whose reader looks at the clock."""
        self._waited += 1
        if self._stalled or self._link.is_closing():
            if self._waited > STALL_SECONDS:
                self._link.abort()
        elif self._waiter is None:
            self._waited = 0
        elif self._begun and self._waited > HEAD_SECONDS:
            self._link.write(refused(too_slow(HEAD_SECONDS)).response(keep_alive=False))
            self.force_close()
        elif self._waited > IDLE_SECONDS:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never became a request, or to a fault of ours; closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun; it cannot be replaced by an error")
        if status >= 500:
            _logger.error("a request failed", exc_info=exc)
            error = internal()
        else:
            error = RefusedError(
                status, f"malformed HTTP: {(message or 'bad request').splitlines()[0]}", Reason.INVALID
            )
        response = _response(refused(error))
        response.force_close()
        return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes `{"error": ...}`."""
    try:
        return await handler(request)
    except RefusedError as error:
        return _response(refused(error))
    except web.HTTPException as error:
        response = _json({"error": error.reason}, error.status)
        if allowed := error.headers.get("Allow"):
            response.headers["Allow"] = allowed
        return response
    except Exception:
        _logger.exception("%s %s failed", request.method, request.path)
        return _response(refused(internal()))


async def _receive(request: web.Request, seconds: float, take: Callable[[bytes], bool]) -> None:
    """Hand on the body as it comes, to its end or until `take` has enough of it.

    Raises:
        RefusedError: 408 if that takes too long, 400 if the body is not what its head says.
    """
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.content.iter_any():
                if not take(chunk):
                    return
    except TimeoutError:
        raise too_slow(seconds) from None
    except (web.RequestPayloadError, ClientError, ValueError) as error:
        raise invalid(f"the body cannot be read: {error}") from None


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue` gets its 100; no other expectation is known."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None
    return _json({"error": "Expect: only 100-continue is understood"}, 417)


async def _coded(answer: Answer, request: web.Request) -> Answer:
    coding = preferred_coding(request.headers.get("Accept-Encoding", ""))
    if coding is None or len(answer.body) < COMPRESS_FROM_BYTES:
        return answer
    if len(answer.body) <= INLINE_BYTES:
        return answer.compressed(coding)
    return await asyncio.get_running_loop().run_in_executor(None, answer.compressed, coding)


def _of_model(suffix: str) -> tuple[str, str]:
    return f"/v2/models/{{model}}{suffix}", f"/v2/models/{{model}}/versions/{{version}}{suffix}"


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, headers={"Content-Type": "application/json"})


def _response(answer: Answer) -> web.Response:
    return web.Response(body=answer.body, status=answer.status, headers=answer.headers())
