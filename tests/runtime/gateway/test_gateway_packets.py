"""However the bytes are cut into packets, the answers are the same and in order."""

from __future__ import annotations

import json
import random
import socket
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = np.arange(4, dtype="<f4")
TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32"}


def binary(served: Any, number: int, lane: str = "fast") -> tuple[bytes, bytes]:
    """A request whose every value is `number`, and the tensor that answers it."""
    document = {
        "inputs": [TENSOR | {"parameters": {"binary_data_size": 16}}],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(document).encode()
    body = header + np.full(4, number, "<f4").tobytes()
    head = served.head(body, lane, Inference_Header_Content_Length=len(header))
    return head + body, np.full(4, number + 1, "<f4").tobytes()


def textual(served: Any, number: int, lane: str = "fast") -> tuple[bytes, bytes]:
    """The same in JSON."""
    body = json.dumps(
        {
            "inputs": [TENSOR | {"data": [number] * 4}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return served.head(body, lane) + body, np.full(4, number + 1, "<f4").tobytes()


@pytest.mark.parametrize("make", [binary, textual])
def test_a_request_may_be_split_at_every_byte(served: Any, lane: str, make: Any) -> None:
    request, expected = make(served, 7, lane)
    with served.wire() as wire:
        for cut in range(1, len(request)):
            wire.say(request[:cut])
            wire.say(request[cut:])
            response = wire.hear()
            assert response is not None and response.status == 200, cut
            assert response.tensors == expected


def test_a_request_may_come_byte_by_byte(served: Any, lane: str) -> None:
    request, expected = binary(served, 3, lane)
    with served.wire() as wire:
        for i in range(len(request)):
            wire.say(request[i : i + 1])
        response = wire.hear()
    assert response is not None and response.tensors == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pipelined_requests_are_answered_in_order(served: Any, data: st.DataObject) -> None:
    """Requests of all kinds, wrong ones and such for the other lane among them, cut anywhere."""
    kinds = data.draw(st.lists(st.sampled_from(["binary", "textual", "wrong", "other", "get"]), min_size=1, max_size=8))
    stream, expected = b"", []
    for number, kind in enumerate(kinds):
        if kind == "get":
            stream += b"GET /v2/models HTTP/1.1\r\nHost: x\r\n\r\n"
            expected.append((200, b""))
        elif kind == "wrong":
            stream += served.head(b"{]") + b"{]"
            expected.append((400, b""))
        else:
            make = textual if kind == "textual" else binary
            request, tensor = make(served, number, "aiohttp" if kind == "other" else "fast")
            stream += request
            expected.append((200, tensor))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)) | {0, len(stream)})
    with served.wire() as wire:
        for begin, end in pairwise(cuts):
            wire.say(stream[begin:end])
        for status, tensor in expected:
            response = wire.hear()
            assert response is not None and response.status == status
            if tensor:
                assert response.tensors == tensor


def test_many_pipelined_requests_are_held_back_not_lost(served: Any) -> None:
    """Far more than the gateway holds of one connection, behind a request that takes its time."""
    served.pipeline.delays["a"] = 0.05
    count = 3000
    requests = [binary(served, number % 50) for number in range(count)]
    with served.wire() as wire:
        wire.say(requests[0][0])
        served.pipeline.delays.clear()
        wire.socket.settimeout(60)
        sender = _send_beside(wire.socket, b"".join(request for request, _ in requests[1:]))
        for _, tensor in requests:
            response = wire.hear()
            assert response is not None and response.tensors == tensor
        sender.join(10)


def _send_beside(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


def test_a_large_tensor_comes_in_many_reads(start: Any, lane: str) -> None:
    """Straight into the rows, past every buffer's size, with the next request right behind it."""
    served = start(
        tensors=[
            {"name": "x0", "datatype": "UINT8", "shape": [1 << 20]},
            {"name": "x1", "datatype": "FP32", "shape": [3]},
        ],
        members=["a"],
    )
    image = random.Random(0).randbytes(3 << 20)
    vector = np.arange(9, dtype="<f4").tobytes()
    document = {
        "inputs": [
            {"name": "x0", "shape": [3, 1 << 20], "datatype": "UINT8", "parameters": {"binary_data_size": 3 << 20}},
            {"name": "x1", "shape": [3, 3], "datatype": "FP32", "parameters": {"binary_data_size": 36}},
        ],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(document).encode()
    body = header + image + vector
    request = served.head(body, lane, Inference_Header_Content_Length=len(header)) + body
    with served.wire() as wire:
        sender = _send_beside(wire.socket, request * 3)
        for _ in range(3):
            response = wire.hear()
            assert response is not None and response.status == 200
            assert response.tensors == image + vector
        sender.join(10)


def test_after_connection_close_nothing_more_is_served(served: Any, lane: str) -> None:
    request, tensor = binary(served, 1, lane)
    with served.wire() as wire:
        wire.say(request.replace(b"\r\nHost:", b"\r\nConnection: close\r\nHost:", 1))
        response = wire.hear()
        assert response is not None and response.tensors == tensor
        assert response.headers["connection"] == "close"
        assert wire.hear() is None
    assert len(served.pipeline.seen) == 1


def test_expect_100_continue_gets_its_100(served: Any) -> None:
    body = json.dumps({"inputs": [TENSOR | {"data": [0] * 4}]}).encode()
    with served.wire() as wire:
        wire.say(served.head(body, Expect="100-continue"))
        interim = wire.hear()
        assert interim is not None and interim.status == 100
        wire.say(body)
        response = wire.hear()
        assert response is not None and response.status == 200


def test_any_other_expectation_is_417(served: Any) -> None:
    response = served.post(b"body", Expect="a-miracle")
    assert response.status == 417 and "100-continue" in response.json["error"]
