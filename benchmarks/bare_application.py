"""The yardstick of plumbing.py: an aiohttp application on uvloop that reads a body and answers ten floats."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web

ANSWER = bytes(10 * 4)


async def answer(request: web.Request) -> web.Response:
    """Do the least that any server has to."""
    await request.read()
    return web.Response(body=ANSWER, content_type="application/octet-stream")


async def ready(_: web.Request) -> web.Response:
    """Say that the server is up."""
    return web.Response()


def main(port: int) -> None:
    """Serve until stopped."""
    application = web.Application(client_max_size=2**26)
    application.router.add_post("/{path:.*}", answer)
    application.router.add_get("/", ready)
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]))
