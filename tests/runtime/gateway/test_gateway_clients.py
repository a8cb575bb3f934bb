"""Clients that leave, dawdle or do not listen take nothing with them; nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import uvloop
from aiohttp import web

from ensemble_runtime.gateway.answers import Answer
from ensemble_runtime.gateway.app import JsonRequestHandler, build_app
from ensemble_runtime.gateway.fastlane import HEAD_SECONDS, IDLE_SECONDS, STALL_SECONDS, Entrance, FastLane
from ensemble_runtime.gateway.heads import HeadReader
from ensemble_runtime.gateway.inference import Exchange, Inference
from ensemble_runtime.gateway.server import sweep

TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32"}


def request(served: Any, lane: str = "fast") -> bytes:
    header = json.dumps({"inputs": [TENSOR | {"parameters": {"binary_data_size": 16}}]}).encode()
    body = header + np.zeros(4, "<f4").tobytes()
    return bytes(served.head(body, lane, Inference_Header_Content_Length=len(header)) + body)


def holding(served: Any, count: int) -> bool:
    """Wait until so many requests hold a lease."""
    waiter = threading.Event()
    for _ in range(500):
        if served.pipeline.in_flight == count:
            return True
        waiter.wait(0.01)
    return False


def canceled(served: Any) -> int:
    lines = served.get("/metrics").body.decode().splitlines()
    (line,) = [line for line in lines if line.startswith("ensemble_inference_request_failure") and "canceled" in line]
    return int(float(line.split()[-1]))


def test_a_client_that_leaves_within_its_body_gives_its_rows_back(served: Any, lane: str) -> None:
    data = request(served, lane)
    with served.wire() as wire:
        wire.say(data[:-1])
        assert holding(served, 1)
    assert served.idle()
    assert canceled(served) == 1


def test_a_client_that_leaves_while_it_waits_gives_its_rows_back(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 60
    with served.wire() as wire:
        wire.say(request(served, lane))
        assert holding(served, 1)
    assert served.idle()
    assert canceled(served) == 1


def test_a_client_that_resets_its_connection_gives_its_rows_back(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 60
    with served.wire() as wire:
        wire.say(request(served, lane))
        assert holding(served, 1)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert served.idle()


def test_a_client_that_closes_half_is_taken_for_gone(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 60
    with served.wire() as wire:
        wire.say(request(served, lane))
        assert holding(served, 1)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.hear() is None
    assert served.idle()


def test_a_client_may_close_half_once_it_is_answered(served: Any, lane: str) -> None:
    with served.wire() as wire:
        wire.say(request(served, lane))
        response = wire.hear()
        assert response is not None and response.status == 200
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.hear() is None


def test_leaving_during_the_decoding_of_large_json_leaks_nothing(start: Any, lane: str) -> None:
    served = start(tensors=[{"name": "x", "datatype": "FP32", "shape": [65536]}])
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 65536], "datatype": "FP32", "data": [0.5] * 65536}]}
    ).encode()
    for _ in range(5):
        with served.wire() as wire:
            wire.say(served.head(body, lane) + body)
    assert served.idle()
    assert served.post(body, lane).status == 200


def test_a_body_that_takes_too_long_is_408(start: Any, lane: str) -> None:
    served = start(serving={"timeoutMs": 300})
    with served.wire() as wire:
        wire.say(request(served, lane)[:-1])
        assert holding(served, 1)
        response = wire.hear()
        assert response is not None and response.status == 408
        assert response.json == {"error": "the request took longer than 0.3 s to arrive"}
    assert served.idle()


def test_what_a_body_takes_is_part_of_the_requests_time(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 60
    header = json.dumps({"inputs": [TENSOR | {"data": [0] * 4}], "parameters": {"timeout": 200_000}}).encode()
    with served.wire() as wire:
        wire.say(served.head(header, lane) + header[:-1])
        time.sleep(0.2)
        wire.say(header[-1:])
        response = wire.hear()
        assert response is not None and response.status == 504
    (seen,) = served.pipeline.seen
    assert seen.age > 0.1


def test_bodies_that_are_gathered_are_bounded_together(start: Any) -> None:
    served = start(serving={"maxBodyMib": 1})
    inference = Inference(served.pipeline)
    most = memoryview(bytes((1 << 20) - 1))
    waiting = [Exchange(inference, 1 << 20, None) for _ in range(5)]
    for exchange in waiting:
        exchange.feed(most)
    assert [exchange.refused for exchange in waiting] == [False] * 4 + [True]
    answers: list[Answer] = []
    waiting[4].submit(answers.append)
    assert answers[0].status == 503 and b"too many large JSON bodies" in answers[0].body
    waiting[0].cancel()
    waiting[1].submit(answers.append)
    assert answers[1].status == 400
    for _ in range(2):
        another = Exchange(inference, 1 << 20, None)
        another.feed(most)
        assert not another.refused
    assert served.pipeline.in_flight == 0


def test_one_slow_client_does_not_hold_up_another(served: Any, lane: str) -> None:
    data = request(served, lane)
    with served.wire() as slow:
        slow.say(data[: len(data) // 2])
        with served.wire() as quick:
            for _ in range(3):
                quick.say(data)
                response = quick.hear()
                assert response is not None and response.status == 200
        slow.say(data[len(data) // 2 :])
        response = slow.hear()
        assert response is not None and response.status == 200


def test_a_client_that_does_not_read_is_not_written_to_without_end(start: Any) -> None:
    """Answers of 2 MiB each to a client that reads none: their number stays bounded while it sends on."""
    served = start(tensors=[{"name": "x", "datatype": "FP32", "shape": [8192]}])
    header = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [64, 8192], "datatype": "FP32", "parameters": {"binary_data_size": 1 << 21}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = header + bytes(1 << 21)
    data = served.head(body, Inference_Header_Content_Length=len(header)) + body
    with served.wire() as wire:
        wire.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(50):
                wire.say(data)
        # Receive and send buffers of both kernels take some; the gateway itself takes one request at a time.
        assert len(served.pipeline.seen) < 25
        assert served.get("/v2/health/live").status == 200


# One timer looks after all connections, once a second; here its seconds pass as the test says.

Pass = Callable[[int], Awaitable[None]]
"""Lets so many seconds pass."""


def on_a_clock(
    served: Any,
    scenario: Callable[[Pass, Callable[[], int], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    """Run a scenario with a clock, a count of the open connections, and one of them; both lanes are there."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        inference = Inference(served.pipeline)
        runner = web.AppRunner(build_app(inference), handler_cancellation=True)
        await runner.setup()
        manager = runner.server
        assert manager is not None
        entrance = Entrance(
            inference,
            HeadReader([served.path], 1 << 26),
            lambda: JsonRequestHandler(manager, loop=loop),
            lambda: False,
            asyncio.Event(),
        )
        server = await loop.create_server(lambda: FastLane(entrance), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)

        async def pass_seconds(seconds: int) -> None:
            await asyncio.sleep(0.05)
            for _ in range(seconds):
                sweep(entrance, manager)
            await asyncio.sleep(0.05)

        async with asyncio.timeout(20):
            await scenario(pass_seconds, lambda: len(entrance.connections) + len(manager.connections), reader, writer)
        writer.close()
        server.close()
        await runner.cleanup()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_an_idle_connection_is_closed_in_time(served: Any, lane: str) -> None:
    async def scenario(
        pass_seconds: Pass, connections: Callable[[], int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await pass_seconds(int(IDLE_SECONDS))
        for _ in range(2):
            writer.write(request(served, lane))
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            await pass_seconds(int(IDLE_SECONDS))
            assert connections()
        await pass_seconds(1)
        assert b"error" not in await reader.read()
        assert not connections()

    on_a_clock(served, scenario)


@pytest.mark.parametrize("line", ["POST /v2/models/digits/infer HTTP/1.1", "GET /v2 HTTP/1.1"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
def test_an_unfinished_head_is_408_in_time(served: Any, line: str, again: bool) -> None:
    head = f"{line}\r\nHost: here\r\nX-Client: slow".encode()

    async def scenario(
        pass_seconds: Pass, connections: Callable[[], int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if again:
            writer.write(head + b"\r\nContent-Length: 0\r\n\r\n")
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
        await pass_seconds(30)
        writer.write(head[:40])
        await pass_seconds(int(HEAD_SECONDS))
        writer.write(head[40:])
        await pass_seconds(0)
        assert connections()
        await pass_seconds(1)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408") and b'{"error":' in answer
        assert not connections()

    on_a_clock(served, scenario)


def test_a_request_in_the_pipeline_is_the_pipelines_to_time(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 0.3

    async def scenario(
        pass_seconds: Pass, connections: Callable[[], int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(request(served, lane))
        await pass_seconds(1000)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")

    on_a_clock(served, scenario)


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "closes"])
def test_a_client_that_never_reads_is_cut_off(start: Any, lane: str, stays: bool) -> None:
    served = start(tensors=[{"name": "x", "datatype": "FP32", "shape": [65536]}])
    served.pipeline.delays["a"] = 0.2
    header = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [64, 65536], "datatype": "FP32", "parameters": {"binary_data_size": 1 << 24}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = header + bytes(1 << 24)
    keep = {} if stays else {"Connection": "close"}

    async def scenario(
        pass_seconds: Pass, connections: Callable[[], int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(served.head(body, lane, Inference_Header_Content_Length=len(header), **keep) + body)
        await writer.drain()
        assert await asyncio.to_thread(lambda: holding(served, 1) and holding(served, 0))
        await pass_seconds(int(STALL_SECONDS))
        assert connections()
        await pass_seconds(1)
        assert not connections()

    on_a_clock(served, scenario)
