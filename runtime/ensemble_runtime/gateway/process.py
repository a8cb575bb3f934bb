"""The gateway's process: one event loop with the pipeline's batching and the two lanes in it."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvloop

from ensemble_runtime.gateway.server import serve
from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.batching import Batcher
from ensemble_runtime.pipeline.wiring import Wiring


def serve_until_stopped(arena: Arena, wiring: Wiring, listener: socket.socket) -> int:
    """Serve on a listening socket until SIGTERM, then drain; returns 0. After SIGUSR1 clients are sent elsewhere.

    Args:
        arena: The ensemble's arena.
        wiring: The doorbells.
        listener: Bound and listening; it outlives this process, so that a restart refuses no connection.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop, leaving = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, leaving.set)
        await serve(Batcher(arena, wiring, loop), listener, stop, leaving)

    uvloop.run(main())
    return 0
