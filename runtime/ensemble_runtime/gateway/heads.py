"""Request heads: which of them are plain enough for the fast lane, and what they say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest

import httptools

from ensemble_runtime.gateway.memo import Memo

HEAD_BYTES = 16_384
"""Longest head that the fast lane waits for; aiohttp refuses longer ones."""

_CODINGS = ("gzip", "deflate")
_NOT_PLAIN = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"trailer", b"te"))


@dataclass(frozen=True, slots=True)
class Head:
    """What the fast lane needs to know of a plain infer request."""

    length: int
    """Content-Length, at least 1."""
    json_bytes: int | None
    """Inference-Header-Content-Length; None if absent, -1 if it is no number."""
    keep_alive: bool
    coding: str | None
    """The content coding that the client would like the answer in."""


class HeadReader:
    """Parses heads strictly and remembers them by their exact bytes."""

    def __init__(self, targets: Iterable[str], max_body: int, authorization: bytes | None = None) -> None:
        """Serve only these request targets, bodies up to `max_body` bytes, and, where given, this authorization."""
        self._authorization = authorization
        self._targets = frozenset(target.encode() for target in targets)
        self._max_body = max_body
        self._memo = Memo[Head](most=4096, entry_bytes=2048)
        self.known = self._memo.get

    def read(self, raw: bytes) -> Head | None:
        """Parse a head, up to and with its empty line; None if it is not plain and aiohttp must serve it."""
        if len(raw) > HEAD_BYTES:
            return None
        fields = _Fields()
        parser = httptools.HttpRequestParser(fields)
        try:
            parser.feed_data(raw)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        if not fields.complete or fields.body or fields.url not in self._targets:
            return None
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or fields.names & _NOT_PLAIN:
            return None
        length = fields.one(b"content-length")
        if length is None or not length.isdigit() or not 1 <= int(length) <= self._max_body:
            return None
        if self._authorization is not None and not compare_digest(
            fields.one(b"authorization") or b"", self._authorization
        ):
            return None
        json_bytes = fields.one(b"inference-header-content-length")
        head = Head(
            length=int(length),
            json_bytes=None if json_bytes is None else parse_length(json_bytes.decode("latin-1")),
            keep_alive=parser.should_keep_alive(),
            coding=preferred_coding(b",".join(fields.all(b"accept-encoding")).decode("latin-1")),
        )
        self._memo.put(raw, head)
        return head


class _Fields:
    """Collects what httptools reports."""

    def __init__(self) -> None:
        self.url = b""
        self.complete = False
        self.body = False
        self.names: set[bytes] = set()
        self._fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.add(name.lower())
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, body: bytes) -> None:
        self.body = True

    def on_message_complete(self) -> None:
        self.body = True

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self._fields if key == name]

    def one(self, name: bytes) -> bytes | None:
        values = self.all(name)
        if len(values) > 1:
            return b"repeated"
        return values[0].strip() if values else None


def parse_length(text: str) -> int:
    """The value of Inference-Header-Content-Length; -1 if it is no such number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else -1


def preferred_coding(accepted: str) -> str | None:
    """Choose gzip or deflate by an Accept-Encoding header (RFC 9110, 12.5.3); None: no coding."""
    weights: dict[str, float] = {}
    for item in accepted.split(","):
        name, _, parameter = item.partition(";")
        key, _, weight = parameter.partition("=")
        try:
            weights[name.strip().lower()] = float(weight) if key.strip().lower() == "q" else 1.0
        except ValueError:
            weights[name.strip().lower()] = 0.0
    best = max(_CODINGS, key=lambda coding: weights.get(coding, 0.0))
    return best if weights.get(best, 0.0) > 0 else None
