"""One connection to a shard, against peers that answer in pieces, too early, or not in HTTP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.pipeline.remote_link import Link, LostError


@contextlib.contextmanager
def peer(*pieces: bytes, listens: bool = True) -> Iterator[tuple[Link, list[bytes]]]:
    """A link to somebody who hears a request of known length, says these pieces, and closes."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if listens:
                    heard.append(connection.recv(1 << 20))
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        link = Link(f"http://127.0.0.1:{server.getsockname()[1]}", b"Bearer word", "/there", 10.0)
        try:
            yield link, heard
        finally:
            link.close()
            thread.join()


def response(json: bytes, tensors: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(json) + len(tensors)}\r\n"
    return (head + f"Inference-Header-Content-Length: {len(json)}\r\n\r\n").encode() + json + tensors


@settings(deadline=None, max_examples=25)
@given(st.binary(min_size=1, max_size=200), st.integers(0, 200_000), st.lists(st.integers(0, 250), max_size=4))
def test_an_answer_comes_whole_however_it_is_cut(json: bytes, size: int, cuts: list[int]) -> None:
    tensors = bytes(i % 251 for i in range(size))
    answer = response(json, tensors)
    ends = [0, *sorted(cuts), len(answer)]
    with peer(*(answer[a:b] for a, b in itertools.pairwise(ends))) as (link, _):
        link.send(b"{}", [])
        reply = link.receive()
        assert (reply.status, bytes(reply.json), bytes(reply.tensors)) == (200, json, tensors)
        assert link.received == len(answer)


def test_a_request_says_who_asks_and_how_long_it_is() -> None:
    with peer(response(b"{}", b"")) as (link, heard):
        sent = link.send(b'{"a":1}', [memoryview(b"abc"), memoryview(b"defg")])
        link.receive()
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert sent == len(heard[0])
    assert body == b'{"a":1}abcdefg'
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /there HTTP/1.1"
    assert {b"Authorization: Bearer word", b"Content-Length: 14", b"Inference-Header-Content-Length: 7"} <= set(lines)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        response(b"{}", b"abc")[:-1],
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"x" * 20_000,
    ],
)
def test_what_is_no_answer_is_a_lost_connection(said: bytes) -> None:
    with peer(said) as (link, _):
        link.send(b"{}", [])
        with pytest.raises(LostError):
            link.receive()


def test_nobody_there_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LostError, match="refused"):
        Link(f"http://127.0.0.1:{port}", b"Bearer word", "/there", 1.0)
