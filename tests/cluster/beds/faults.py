"""A proxy before the API server that answers badly on demand: refused writes, busy servers, cut watches."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

Fault = Callable[[str, str], int | None]
"""From method and path to the status to answer instead of the API server; None lets the request pass."""

_REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
_SKIPPED = {"transfer-encoding", "connection", "content-length", "host", "date", "server"}
_CHUNK = 2**16


class FaultyProxy:
    """Plain HTTP on loopback before an API server; a context manager.

    Attributes:
        url: What a kubeconfig names instead of the API server.
        fault: Decides over each request; may be set at any time.
        refused: How many requests were answered badly.
    """

    def __init__(self, upstream: str, ca: Path) -> None:
        self.fault: Fault | None = None
        self.refused = 0
        self._upstream = urlsplit(upstream).netloc
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._watches: set[HTTPSConnection] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="faulty-proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut_watches()
        self._server.shutdown()
        self._server.server_close()

    def cut_watches(self) -> int:
        """End every watch in the middle, as a broken network does; returns how many there were."""
        with self._lock:
            cut, self._watches = self._watches, set()
        for connection in cut:
            if connection.sock:
                # The method of the plain socket: closing alone would not wake the thread that reads.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        return len(cut)

    def times(self, count: int, status: int, matches: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """The next so many requests that match are answered with this status."""
        left = [count]

        def fault(method: str, path: str) -> int | None:
            with self._lock:
                if left[0] > 0 and matches(method, path):
                    left[0] -= 1
                    return status
            return None

        self.fault = fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                """Quiet."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = proxy.fault(self.command, self.path) if proxy.fault else None
                if status is None:
                    proxy._forward(self, body)
                else:
                    proxy._refuse(self, status)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - the names that http.server calls

        return Handler

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        with self._lock:
            self.refused += 1
        reason = _REASONS.get(status, "Unknown")
        message = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason}
        content = json.dumps({**message, "message": "a fault of the test"}).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        if status == 429:
            handler.send_header("Retry-After", "1")
        handler.end_headers()
        handler.wfile.write(content)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        watch = "watch" in parse_qs(urlsplit(handler.path).query, keep_blank_values=True)
        connection = HTTPSConnection(self._upstream, context=self._tls, timeout=None if watch else 60)
        headers = {key: value for key, value in handler.headers.items() if key.lower() not in _SKIPPED}
        try:
            connection.request(handler.command, handler.path, body or None, headers | {"Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if watch:
                with self._lock:
                    self._watches.add(connection)
            self._relay(answer, handler)
        except (OSError, HTTPException, ValueError):  # either side is gone: so is the connection, as in a real network
            handler.close_connection = True
        finally:
            with self._lock:
                self._watches.discard(connection)
            connection.close()

    def _relay(self, answer: HTTPResponse, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _SKIPPED:
                handler.send_header(key, value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while piece := answer.read1(_CHUNK):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        if not answer.isclosed():
            raise ConnectionError("cut in the middle")  # and so the client must see it: no last chunk
        handler.wfile.write(b"0\r\n\r\n")
