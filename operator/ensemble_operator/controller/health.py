"""Two small doors: /healthz, which proves that the loop turns, and /metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Pulse:
    """When the loop showed itself last."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds without a beat after which the loop counts as stuck."""
        self._patience = patience
        self._last = time.monotonic()

    def beat(self) -> None:
        """Show that the loop turns."""
        self._last = time.monotonic()

    def fault(self) -> str | None:
        """Why the operator is to be restarted; None while it lives."""
        silent = time.monotonic() - self._last
        return f"the loop has not turned for {silent:.0f} s" if silent > self._patience else None


@asynccontextmanager
async def doors(
    *, liveness_port: int, metrics_port: int, fault: Callable[[], str | None], registry: CollectorRegistry
) -> AsyncIterator[tuple[int, int]]:
    """Serve /healthz and /metrics meanwhile; gives the ports that they are at.

    Args:
        liveness_port: 0: any free one.
        metrics_port: As above; both may be the same port.
        fault: Why the operator is not well; None: it is.
        registry: What to show.
    """

    async def healthz(_: web.Request) -> web.Response:
        problem = fault()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    same = liveness_port == metrics_port != 0
    live, shown = web.Application(), web.Application()
    live.add_routes([web.get("/healthz", healthz), *([web.get("/metrics", metrics)] if same else [])])
    shown.add_routes([web.get("/metrics", metrics)])
    runners = [web.AppRunner(app, access_log=None) for app in ((live,) if same else (live, shown))]
    try:
        for runner, port in zip(runners, (liveness_port, metrics_port), strict=False):
            await runner.setup()
            # All addresses, of both families; a free port is found for each family apart, so then it is one family.
            await web.TCPSite(runner, None if port else "127.0.0.1", port).start()
        ports = [int(runner.addresses[0][1]) for runner in runners]
        yield ports[0], ports[-1]
    finally:
        for runner in runners:
            await runner.cleanup()
