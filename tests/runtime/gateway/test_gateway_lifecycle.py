"""The gateway ends in order, holds to its limits, and nothing that is sent brings it down."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_runtime.gateway import server

TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32"}


def body() -> bytes:
    return json.dumps({"inputs": [TENSOR | {"data": [1, 2, 3, 4]}]}).encode()


def in_flight(served: Any, count: int) -> bool:
    waiter = threading.Event()
    for _ in range(500):
        if served.pipeline.in_flight == count:
            return True
        waiter.wait(0.01)
    return False


def test_stopping_answers_what_is_in_flight_and_closes_the_rest(served: Any, lane: str) -> None:
    served.pipeline.delays["a"] = 0.5
    with served.wire() as idle, served.wire() as busy:
        busy.say(served.head(body(), lane) + body())
        assert in_flight(served, 1)
        served.stop()
        assert idle.hear() is None
        response = busy.hear()
        assert response is not None and response.status == 200
        assert busy.hear() is None
    with pytest.raises(ConnectionRefusedError):
        served.get("/v2/health/live")


def test_stopping_does_not_wait_longer_than_it_may(start: Any, lane: str) -> None:
    served = start(serving={"drainMs": 200})
    served.pipeline.delays["a"] = 60
    with served.wire() as wire:
        wire.say(served.head(body(), lane) + body())
        assert in_flight(served, 1)
        served.stop()
        with suppress(ConnectionResetError):
            assert wire.hear() is None
    assert served.idle()


def test_a_connection_too_many_is_told_so(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    served = start()
    with served.wire() as fast, served.wire() as other, served.wire() as third:
        fast.say(served.head(body()) + body())
        other.say(served.head(body(), "aiohttp") + body())
        third.say(served.head(body()) + body())
        for wire in (fast, other, third):
            response = wire.hear()
            assert response is not None and response.status == 200
        with served.wire() as fourth:
            response = fourth.hear()
            assert response is not None and response.status == 503
            assert response.json == {"error": "too many connections"}
            assert fourth.hear() is None
    waiter = threading.Event()
    for _ in range(500):
        with served.wire() as again:
            again.say(served.head(body()) + body())
            response = again.hear()
            if response is not None and response.status == 200:
                return
        waiter.wait(0.01)
    pytest.fail("connections that have ended still count")


pieces = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [
            b"POST /v2/models/digits/infer HTTP/1.1\r\n",
            b"GET /v2/health/live HTTP/1.1\r\n",
            b"Content-Length: 20\r\n",
            b"Content-Length: 99999999999\r\n",
            b"Inference-Header-Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"Connection: upgrade\r\nUpgrade: websocket\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
            b"5\r\nhello\r\n0\r\n\r\n",
        ]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(pieces, min_size=1, max_size=10))
def test_no_bytes_bring_it_down_or_draw_a_traceback(served: Any, parts: list[bytes]) -> None:
    with served.wire() as wire:
        try:
            for part in parts:
                wire.say(part)
            wire.socket.shutdown(1)
            heard = b""
            while data := wire.socket.recv(65536):
                heard += data
        except (ConnectionError, TimeoutError, OSError):
            heard = b""
        assert b"Traceback" not in heard
        assert not heard or heard.startswith(b"HTTP/1.")
    assert served.post(body()).status == 200


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), header=st.none() | st.integers(-3, 210), data=st.data())
def test_no_body_brings_it_down(served: Any, noise: bytes, header: int | None, data: st.DataObject) -> None:
    lane = data.draw(st.sampled_from(["fast", "aiohttp"]))
    extra = {} if header is None else {"Inference_Header_Content_Length": header}
    response = served.post(noise, lane, **extra)
    assert response.status in (200, 400)
    if response.status == 400:
        assert set(response.json) == {"error"} and "Traceback" not in response.json["error"]
    assert served.pipeline.in_flight == 0


def test_a_fault_of_ours_is_a_500_without_details(served: Any, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.pipeline, "lease", broken)
    response = served.post(body(), lane)
    assert (response.status, response.json) == (500, {"error": "internal error; the server's log tells more"})
    monkeypatch.undo()
    assert served.post(body(), lane).status == 200
    monkeypatch.setattr(served.pipeline, "health", broken)
    assert served.get("/v2/health/ready").json == {"error": "internal error; the server's log tells more"}
    assert np.array_equal(served.post(body(), lane).json["outputs"][0]["data"], [2, 3, 4, 5])
