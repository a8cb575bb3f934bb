"""The gateway on a listening socket: both lanes, their limits, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from aiohttp import web

from ensemble_runtime.gateway.app import JsonRequestHandler, build_app
from ensemble_runtime.gateway.fastlane import Entrance, FastLane
from ensemble_runtime.gateway.heads import HeadReader
from ensemble_runtime.gateway.inference import Inference
from ensemble_runtime.gateway.shard import ShardInference
from ensemble_runtime.pipeline.port import Pipeline
from ensemble_runtime.pipeline.remote_wire import TARGET

CONNECTIONS = 4096
BACKLOG = 1024

_logger = logging.getLogger(__name__)


async def serve(
    pipeline: Pipeline[Any], sock: socket.socket, stop: asyncio.Event, leaving: asyncio.Event | None = None
) -> None:
    """Serve until `stop` is set; then answer what is in flight, for `serving.drainMs` at the most, and close.

    Args:
        pipeline: Where requests go.
        sock: Bound, and perhaps shared with other gateways; closed at the end.
        stop: Set it to end.
        leaving: Set it some time before: requests are answered as ever, and each answer closes its connection, so that
            no client is just about to use one that is closed at the end.
    """
    leaving = leaving or asyncio.Event()
    loop = asyncio.get_running_loop()
    config = pipeline.config
    inference = Inference(pipeline) if config.shard is None else ShardInference(pipeline, config.shard)
    drain_seconds = config.serving.drain_ms / 1e3
    app = build_app(inference)

    async def close_when_leaving(_: web.Request, response: web.StreamResponse) -> None:
        if leaving.is_set():
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_response_prepare.append(close_when_leaving)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=drain_seconds)
    await runner.setup()
    manager = runner.server
    assert manager is not None
    settings: dict[str, Any] = {"access_log": None}

    def hand_over() -> asyncio.Protocol:
        return JsonRequestHandler(manager, loop=loop, **settings)

    def crowded() -> bool:
        return len(entrance.connections) + len(manager.connections) >= CONNECTIONS

    target = f"/v2/models/{config.name}"
    targets = (f"{target}/infer", f"{target}/versions/{config.version}/infer") if config.shard is None else (TARGET,)
    heads = HeadReader(targets, inference.max_body, inference.authorization)
    entrance = Entrance(inference, heads, hand_over, crowded, leaving)
    server = await loop.create_server(lambda: FastLane(entrance), sock=sock, backlog=BACKLOG)
    sweeper = asyncio.create_task(_sweep(entrance, manager))
    _logger.info("gateway of '%s' serves on %s", config.name, sock.getsockname())
    try:
        await stop.wait()
    finally:
        server.close()
        await asyncio.gather(entrance.drain(drain_seconds), runner.cleanup())
        sweeper.cancel()


async def _sweep(entrance: Entrance, manager: web.Server) -> None:
    while True:
        await asyncio.sleep(1)
        sweep(entrance, manager)


def sweep(entrance: Entrance, manager: web.Server) -> None:
    """A second has passed, in both lanes."""
    entrance.sweep()
    for connection in manager.connections:
        assert isinstance(connection, JsonRequestHandler)
        connection.sweep()
