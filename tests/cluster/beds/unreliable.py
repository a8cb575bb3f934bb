"""A way to the API server that fails on purpose: answers 409, 429 and 500 of its own, and watches that break off."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from beds.controlplane import ControlPlane

_PASSED_ON = ("Authorization", "Content-Type", "Accept", "User-Agent")


class Unreliable:
    """A reverse proxy in a thread of its own; a context manager.

    Attributes:
        url: Where it listens, in plain HTTP.
        refused: How many requests it answered itself, by status.
        cut: How many watches it broke off.
    """

    def __init__(self, plane: ControlPlane, *, share: float, watch_seconds: float, seed: int = 0) -> None:
        """`share` of the requests fail; a watch lives for `watch_seconds`."""
        self._plane, self._share, self._watch_seconds = plane, share, watch_seconds
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""
        self.refused: dict[int, int] = {}
        self.cut = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _start(self) -> None:
        trust = ssl.create_default_context(cafile=str(self._plane.ca))
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "true"
        if not watching and self._random.random() < self._share:
            return self._refusal(request.method)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        target = self._plane.url + request.raw_path
        body = await request.read() or None
        async with self._session.request(request.method, target, data=body, headers=headers) as there:
            here = web.StreamResponse(status=there.status, headers={"Content-Type": there.headers["Content-Type"]})
            await here.prepare(request)
            try:
                async with asyncio.timeout(self._watch_seconds if watching else None):
                    async for chunk in there.content.iter_any():
                        await here.write(chunk)
            except TimeoutError:
                self.cut += 1
                if request.transport is not None:
                    request.transport.abort()
            return here

    def _refusal(self, method: str) -> web.Response:
        status = self._random.choice([429, 500, 503, *([409] * 6 if method == "PATCH" else [])])
        self.refused[status] = self.refused.get(status, 0) + 1
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "on purpose", "code": status}
        return web.json_response(body, status=status, headers={"Retry-After": "0"} if status == 429 else {})
