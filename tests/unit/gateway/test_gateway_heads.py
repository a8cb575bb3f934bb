"""Only plain heads are for the fast lane, and they are read as aiohttp would read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.gateway.heads import HEAD_BYTES, Head, HeadReader, parse_length, preferred_coding
from ensemble_runtime.gateway.memo import Memo

TARGETS = ("/v2/models/digits/infer", "/v2/models/digits/versions/3/infer")


@pytest.fixture
def reader() -> HeadReader:
    return HeadReader(TARGETS, max_body=1000)


def head(*fields: str, line: str = f"POST {TARGETS[0]} HTTP/1.1", length: str | None = "10") -> bytes:
    lines = [line, "Host: here", *fields]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_plain_head_is_read(reader: HeadReader) -> None:
    assert reader.read(head()) == Head(10, None, True, None)
    full = head(
        "INFERENCE-header-Content-LENGTH: 7", "connection: close", "Accept-Encoding: br, gzip",
        line=f"POST {TARGETS[1]} HTTP/1.1",
    )  # fmt: skip
    assert reader.read(full) == Head(10, 7, False, "gzip")


def test_a_head_is_remembered_by_its_bytes(reader: HeadReader) -> None:
    raw = head()
    assert reader.known(raw) is None
    first = reader.read(raw)
    assert reader.known(raw) is first
    assert reader.known(raw.replace(b"here", b"HERE")) is None


@pytest.mark.parametrize(
    "raw",
    [
        head(line=f"GET {TARGETS[0]} HTTP/1.1"),
        head(line=f"POST {TARGETS[0]} HTTP/1.0"),
        head(line=f"POST {TARGETS[0]}?a=1 HTTP/1.1"),
        head(line="POST /v2/models/other/infer HTTP/1.1"),
        head(line="POST /v2/models/digits/versions/4/infer HTTP/1.1"),
        head(line=f"POST http://here{TARGETS[0]} HTTP/1.1"),
        head(length=None),
        head(length="0"),
        head(length="1001"),
        head(length="-1"),
        head(length="+1"),
        head(length="1_0"),
        head(length="10, 10"),
        head(length="99999999999999999999"),
        head("Content-Length: 10"),
        head("Content-Length: 11"),
        head("Transfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked", length=None),
        head("Content-Encoding: gzip"),
        head("Content-Encoding: identity"),
        head("Expect: 100-continue"),
        head("Upgrade: h2c", "Connection: upgrade"),
        head("X: 1\n\nPOST / HTTP/1.1"),
        head("X : 1"),
        head("X: a\x00b"),
        head("X: 1\r\n folded: 2"),
        head("X: " + "a" * HEAD_BYTES),
        b"\x00" * 40 + b"\r\n\r\n",
    ],
)
def test_anything_else_is_left_to_aiohttp(reader: HeadReader, raw: bytes) -> None:
    assert reader.read(raw) is None
    assert reader.known(raw) is None


@given(st.binary(max_size=200))
def test_random_heads_are_left_to_aiohttp(noise: bytes) -> None:
    assert HeadReader(TARGETS, 1000).read(noise + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("12", 12), ("-1", -1), ("", -1), ("1.5", -1), ("٣", -1), ("9" * 30, -1)]
)
def test_a_length_is_a_number_or_minus_one(text: str, value: int) -> None:
    assert parse_length(text) == value


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("GZIP ; Q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=a lot", None),
    ],
)
def test_the_preferred_coding_is_the_clients(accepted: str, coding: str | None) -> None:
    assert preferred_coding(accepted) == coding


@given(st.lists(st.binary(max_size=12), max_size=60))
def test_a_memo_is_bounded_and_never_wrong(keys: list[bytes]) -> None:
    memo = Memo[bytes](most=5, entry_bytes=8)
    for key in keys:
        memo.put(key, key)
        assert len(memo) <= 5
        assert memo.get(key) == (key if len(key) <= 8 else None)
    assert all(memo.get(key) in (None, key) for key in keys)
