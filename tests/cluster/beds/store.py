"""A small S3-compatible store: one bucket, one key, and what a real store checks first: every request's signature."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, quote, urlsplit

BUCKET = "models"
KEY, SECRET = "reader", "hidden-value"
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/(.+?)/s3/aws4_request, SignedHeaders=(.+?), Signature=(\w+)"
)


class Store:
    """A context manager.

    Attributes:
        url: What `AWS_ENDPOINT_URL` says.
        objects: Contents by name, which may be changed at any time.
        asked: How many requests came for each object, whatever became of them.
    """

    def __init__(self, objects: Mapping[str, bytes], address: str = "127.0.0.1") -> None:
        self.objects = dict(objects)
        self.asked: Counter[str] = Counter()
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="store", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                store._answer(self, body=False)

            def do_GET(self) -> None:
                store._answer(self, body=True)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        name = urlsplit(request.path).path.removeprefix(f"/{BUCKET}/")
        self.asked[name] += 1
        if code := _refusal(request):
            _send(request, 403, _error(code), {}, body=body)
        elif (content := self.objects.get(name)) is None:
            _send(request, 404, _error("NoSuchKey"), {}, body=body)
        elif wanted := re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            _send(request, 206, content[first : last + 1], span, body=body)
        else:
            _send(request, 200, content, {}, body=body)


def _refusal(request: BaseHTTPRequestHandler) -> str | None:
    """The error's code for a request that is not signed by the key; None for one that is."""
    signed = _SIGNED.match(request.headers.get("Authorization", ""))
    if signed is None:
        return "AccessDenied"
    key, date, region, headers, signature = signed.groups()
    if key != KEY:
        return "InvalidAccessKeyId"
    where = urlsplit(request.path)
    terms = sorted(parse_qsl(where.query, keep_blank_values=True))
    canonical = [
        request.command,
        where.path,
        "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in terms),
        *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in headers.split(";")),
        "",
        headers,
        request.headers.get("x-amz-content-sha256", ""),
    ]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    scope = f"{date}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{request.headers.get('x-amz-date', '')}\n{scope}\n{digest}"
    right = f"AWS4{SECRET}".encode()
    for part in (date, region, "s3", "aws4_request", text):
        right = hmac.digest(right, part.encode(), "sha256")
    return None if hmac.compare_digest(right.hex(), signature) else "SignatureDoesNotMatch"


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>a refusal of the tests' store</Message></Error>".encode()


def _send(
    request: BaseHTTPRequestHandler, status: int, content: bytes, headers: Mapping[str, str], *, body: bool
) -> None:
    described = {
        "Content-Length": str(len(content)),
        "ETag": '"one"',
        "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        **headers,
    }
    request.send_response(status)
    for name, value in described.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(content)
