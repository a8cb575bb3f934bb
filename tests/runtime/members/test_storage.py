"""Fetching from files, a real HTTP server on loopback, and fsspec."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from ensemble_runtime.config import ModelFormat, ModelSource
from ensemble_runtime.errors import DigestMismatchError, ModelUnavailableError
from ensemble_runtime.members import storage
from ensemble_runtime.members.storage import fetch, redacted, to_parse

CONTENT = b"model bytes " * 200_000  # more than one block
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


class Handler(BaseHTTPRequestHandler):
    """/model, and what goes wrong."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        route = self.path.split("?")[0]
        if route in ("/model", "/slowly"):
            self.respond(200, {"Content-Length": len(CONTENT)}, CONTENT)
        elif route == "/unsized":
            self.respond(200, {}, CONTENT)
        elif route == "/cut":
            self.respond(200, {"Content-Length": len(CONTENT)}, CONTENT[:1000])
        elif route == "/moved":
            self.respond(302, {"Location": "/model"})
        elif route == "/in-circles":
            self.respond(302, {"Location": "/in-circles"})
        elif route == "/to-a-file":
            self.respond(302, {"Location": "file:///etc/hostname"})
        elif route == "/elsewhere":
            self.respond(302, {"Location": f"http://localhost:{self.server.server_port}/open"})
        elif route == "/open":
            leaked = "Authorization" in self.headers
            self.respond(500 if leaked else 200, {"Content-Length": len(CONTENT)}, CONTENT)
        elif route == "/private":
            wanted = "Basic " + base64.b64encode(b"me:p@ss").decode()
            allowed = self.headers.get("Authorization") == wanted
            self.respond(200 if allowed else 401, {"Content-Length": len(CONTENT)}, CONTENT)
        elif route == "/silent":
            time.sleep(5)
        else:
            self.respond(404, {"Content-Length": 0})

    def respond(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        listening.asked = Counter()
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


@pytest.fixture
def url(server):
    def make(path, credentials=""):
        return f"http://{credentials}127.0.0.1:{server.server_port}{path}"

    return make


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def source(uri, sha256=None):
    return ModelSource(uri=uri, format=ModelFormat.ONNX, sha256=sha256)


def files_in(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")


def test_a_local_file_is_used_where_it_is(tmp_path, cache):
    file = tmp_path / "a model.onnx"
    file.write_bytes(CONTENT)
    found = fetch(source(file.as_uri(), DIGEST), cache)
    assert (found.path, found.sha256, found.size) == (file, DIGEST, len(CONTENT))
    assert not cache.exists()
    file.write_bytes(CONTENT + b"!")
    with pytest.raises(DigestMismatchError) as caught:
        fetch(source(file.as_uri(), DIGEST), cache)
    assert DIGEST in str(caught.value)
    assert hashlib.sha256(CONTENT + b"!").hexdigest() in str(caught.value)


@pytest.fixture
def in_place(tmp_path, cache):
    """A file that was fetched where it is, and its path."""
    path = tmp_path / "m.onnx"
    path.write_bytes(CONTENT)
    return fetch(ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX), cache), path


def test_a_file_in_place_that_nobody_touched_is_not_hashed_again(in_place, monkeypatch):
    model, path = in_place
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert to_parse(model) == path


@pytest.mark.parametrize("way", ["written in place", "renamed over it", "as long and as old"])
def test_a_file_in_place_that_was_overwritten_is_not_parsed(in_place, way):
    model, path = in_place
    other = CONTENT[:-1] + b"?"
    if way == "renamed over it":
        path.with_name("new").write_bytes(other)
        path.with_name("new").rename(path)
    else:
        before = path.stat()
        path.write_bytes(other)
        if way == "as long and as old":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DigestMismatchError) as caught:
        to_parse(model)
    for part in (str(path), DIGEST, hashlib.sha256(other).hexdigest()):
        assert part in str(caught.value)


def test_a_file_in_place_with_the_same_bytes_is_the_same_model(in_place):
    model, path = in_place
    path.write_bytes(b"something else")
    path.write_bytes(CONTENT)
    assert to_parse(model) == path


def test_a_file_in_place_that_is_gone(in_place):
    model, path = in_place
    path.unlink()
    with pytest.raises(ModelUnavailableError, match="it was there before"):
        to_parse(model)


def test_a_path_relative_to_the_working_directory(tmp_path, cache, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    assert fetch(source("file://./m.onnx"), cache).path == tmp_path / "m.onnx"


def test_local_files_that_are_none(tmp_path, cache):
    for uri, message in {
        (tmp_path / "none.onnx").as_uri(): "No such file",
        tmp_path.as_uri(): "directory",
        "file:///dev/zero": "no regular file",
        "file://models/m.onnx": "expected file:///absolute/path or file://./relative/path",
    }.items():
        with pytest.raises(ModelUnavailableError, match=message):
            fetch(source(uri), cache)


def test_a_pinned_file_is_fetched_once_and_hashed_each_time(server, url, cache):
    pinned = source(url("/model"), DIGEST)
    first, second = fetch(pinned, cache), fetch(pinned, cache)
    assert first == second
    assert first.path == cache / "sha256" / DIGEST[:2] / DIGEST[2:]
    assert first.path.read_bytes() == CONTENT
    assert server.asked["/model"] == 1
    first.path.write_bytes(b"damaged")
    assert fetch(pinned, cache).path.read_bytes() == CONTENT
    assert server.asked["/model"] == 2


def test_an_unpinned_file_is_fetched_each_time_and_kept_once(server, url, cache):
    assert fetch(source(url("/model")), cache).sha256 == DIGEST
    fetch(source(url("/model")), cache)
    assert server.asked["/model"] == 2
    assert files_in(cache) == [cache / "sha256" / DIGEST[:2] / DIGEST[2:]]


def test_a_wrong_digest_leaves_nothing_in_the_cache(url, cache):
    with pytest.raises(DigestMismatchError, match=f"its sha256 is {DIGEST}, the manifest pins {OTHER}"):
        fetch(source(url("/model"), OTHER), cache)
    assert files_in(cache) == []


def test_progress_ends_at_the_size(url, cache):
    told = []
    fetch(source(url("/model")), cache, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert len(told) > 1


def test_without_a_stated_size_the_total_is_unknown(url, cache):
    told = []
    assert fetch(source(url("/unsized")), cache, lambda *args: told.append(args)).size == len(CONTENT)
    assert told[-1] == (len(CONTENT), None)


@pytest.mark.parametrize("path", ["/moved", "/elsewhere"])
def test_redirects_are_followed_without_the_password(url, cache, path):
    assert fetch(source(url(path, "me:secret@"), DIGEST), cache).size == len(CONTENT)


def test_credentials_of_the_address_are_sent_and_never_told(url, cache):
    assert fetch(source(url("/private", "me:p%40ss@"), DIGEST), cache).size == len(CONTENT)
    with pytest.raises(ModelUnavailableError) as caught:
        fetch(source(url("/private?signature=s3cret", "me:wr0ng@")), cache)
    assert "401" in str(caught.value)
    assert "wr0ng" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", "the server answers 404"),
        ("/cut", f"cut short at 1000 of {len(CONTENT)} bytes"),
        ("/in-circles", "302"),
        ("/to-a-file", "302"),
    ],
)
def test_what_a_server_can_get_wrong(url, cache, path, message):
    with pytest.raises(ModelUnavailableError, match=rf"^model http://127[^\n]*{message}[^\n]*$"):
        fetch(source(url(path), DIGEST), cache)
    assert files_in(cache) == []


def test_a_silent_server_is_given_up(url, cache, monkeypatch):
    monkeypatch.setattr(storage, "SILENCE_SECONDS", 0.2)
    with pytest.raises(ModelUnavailableError, match="timed out"):
        fetch(source(url("/silent")), cache)


def test_a_fetch_that_takes_too_long_is_given_up(url, cache, monkeypatch):
    monkeypatch.setattr(storage, "FETCH_SECONDS", -1.0)
    with pytest.raises(ModelUnavailableError, match="given up"):
        fetch(source(url("/slowly")), cache)
    assert files_in(cache) == []


def test_nobody_listens(cache):
    with pytest.raises(ModelUnavailableError, match="refused"):
        fetch(source("http://127.0.0.1:9/model"), cache)


@pytest.mark.parametrize("path", ["/model", "/unsized"])
def test_too_large(url, cache, path):
    with pytest.raises(ModelUnavailableError, match="accepted"):
        fetch(source(url(path)), cache, max_bytes=1000)
    assert files_in(cache) == []


def test_a_cache_that_cannot_be_written(url, tmp_path):
    (tmp_path / "file").touch()
    for sha256 in (None, DIGEST):
        with pytest.raises(ModelUnavailableError, match="cache"):
            fetch(source(url("/model"), sha256), tmp_path / "file")


def fetched_path(wanted, cache):
    return fetch(wanted, cache).path


def test_processes_that_want_the_same_file_fetch_it_once(server, url, cache):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.starmap(fetched_path, [(source(url("/model"), DIGEST), cache)] * 8)
    assert set(found) == {found[0]}
    assert found[0].read_bytes() == CONTENT
    assert server.asked["/model"] == 1


def test_any_file_system_of_fsspec(cache):
    fsspec.filesystem("memory").pipe("/models/m.onnx", CONTENT)
    assert fetch(source("memory://models/m.onnx", DIGEST), cache).size == len(CONTENT)
    with pytest.raises(ModelUnavailableError, match="memory://models/none"):
        fetch(source("memory://models/none"), cache)


def command(cache, *options, members, told_every=1.0):
    """Records of `python -m ensemble_runtime fetch`, which tells its progress as often as said."""
    code = (
        "import sys, ensemble_runtime.__main__ as command\n"
        f"command.PROGRESS_SECONDS = {told_every}\n"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    request = {"members": [{"name": name, "model": model.model_dump(mode="json")} for name, model in members.items()]}
    done = subprocess.run(
        [sys.executable, "-c", code, "fetch", "--cache", cache, *options, "/dev/stdin"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_tells_how_far_it_is(url, cache):
    *told, last = command(cache, members={"m": source(url("/model"))}, told_every=0.0)
    assert [record["member"] for record in told] == ["m"] * len(told) and len(told) > 1
    assert [record["bytes"] for record in told] == sorted({record["bytes"] for record in told})
    assert {record["ofBytes"] for record in told} == {len(CONTENT)}
    assert last["sha256"] == DIGEST
    unsized = command(cache, members={"m": source(url("/unsized"))}, told_every=0.0)
    assert unsized[0]["ofBytes"] is None


def test_the_command_fetches_only_what_is_missing_if_asked(url, server, cache, tmp_path):
    (tmp_path / "here.onnx").write_bytes(CONTENT)
    members = {"far": source(url("/model"), DIGEST), "here": source((tmp_path / "here.onnx").as_uri(), DIGEST)}
    assert [record["member"] for record in command(cache, "--missing", members=members)] == ["far"]
    assert command(cache, "--missing", members=members) == []
    assert server.asked == {"/model": 1}


@pytest.mark.parametrize(
    ("uri", "module", "extra"),
    [
        ("s3://bucket/key", "s3fs", "s3"),
        ("gs://bucket/key", "gcsfs", "gcs"),
        ("gcs://bucket/key", "gcsfs", "gcs"),
        ("hf://owner/repository/key", "huggingface_hub", "hf"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(cache, monkeypatch, uri, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelUnavailableError, match=rf"pip install 'ensembles\[{extra}\]'"):
        fetch(source(uri), cache)


def test_an_unknown_scheme(cache):
    with pytest.raises(ModelUnavailableError, match="nosuch:// is not known; expected file://, http://"):
        fetch(source("nosuch://a/b"), cache)


def test_addresses_without_their_secrets():
    assert redacted("https://me:pw@host:1/a/b?token=x#y") == "https://host:1/a/b"
    assert redacted("s3://bucket/key") == "s3://bucket/key"
