"""Models from an S3-compatible store, as a pod fetches them: credentials and the store's address in its environment.

The store is small, but it checks what a real one checks first: that requests are signed by the key that it knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CONTENT = b"model bytes " * 100_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Store(BaseHTTPRequestHandler):
    """One bucket with one object, for one key; ranges as S3 answers them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        signed = re.match(r"AWS4-HMAC-SHA256 Credential=(\w+)/", self.headers.get("Authorization", ""))
        if signed is None or signed[1] != "reader":
            self._send(403, b"" if not body else b"<Error><Code>AccessDenied</Code></Error>")
        elif self.path.split("?")[0] != "/models/m.onnx":
            self._send(404, b"" if not body else b"<Error><Code>NoSuchKey</Code></Error>")
        elif wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(CONTENT)), len(CONTENT) - 1)
            headers = {"Content-Range": f"bytes {first}-{last}/{len(CONTENT)}"}
            self._send(206, CONTENT[first : last + 1], headers, body=body)
        else:
            self._send(200, CONTENT, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        described = {
            "Content-Length": str(len(content)),
            "ETag": '"one"',
            "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        }
        for name, value in (described | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def fetch(tmp_path: Path, store: str, *, key: str = "reader", name: str = "m.onnx") -> subprocess.CompletedProcess[str]:
    """What the init container does."""
    model = {"uri": f"s3://models/{name}", "format": "ONNX", "sha256": DIGEST}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"members": [{"name": "m", "model": model}]}))
    secret = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "hidden-value", "AWS_ENDPOINT_URL": store}
    environment = os.environ | secret | {"HOME": str(tmp_path), "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-m", "ensemble_runtime", "fetch", "--cache", str(tmp_path / "cache"), str(request)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_a_model_is_fetched_with_the_keys_of_the_environment(tmp_path: Path, store: str) -> None:
    run = fetch(tmp_path, store)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["sha256"] == DIGEST and Path(found["path"]).read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [{"key": "stranger"}, {"name": "none.onnx"}], ids=["key", "name"])
def test_what_the_store_refuses_is_said_without_the_secret(tmp_path: Path, store: str, wrong: dict[str, str]) -> None:
    run = fetch(tmp_path, store, **wrong)
    assert run.returncode == 66
    assert f"s3://models/{wrong.get('name', 'm.onnx')}" in run.stderr
    assert "hidden-value" not in run.stderr + run.stdout and "Traceback" not in run.stderr
