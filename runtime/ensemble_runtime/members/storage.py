"""Fetches model files into a content-addressed cache; the only room that reads from the network.

Every file is hashed on every start, before a byte of it is parsed. A local file is used where it is; anything else is
written to ``<cache>/sha256/<2 digits>/<62 digits>`` by an atomic rename, so that a file of that name is always whole.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import stat
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, BinaryIO

from ensemble_runtime.config import ModelSource
from ensemble_runtime.errors import DigestMismatchError, ModelNotCachedError, ModelUnavailableError
from ensemble_runtime.members.eviction import LOCK_SUFFIX, PARTIAL, lease

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes in all, where known."""

MAX_MODEL_BYTES = 256 * 2**30
"""Larger files are refused."""
SILENCE_SECONDS = 60.0
"""A server that sends nothing for so long has failed."""
FETCH_SECONDS = 6 * 3600.0
"""A fetch that takes longer has failed."""
_BLOCK = 2**20
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model file on this machine, and what it was found to be."""

    path: Path
    sha256: str
    size: int
    """Bytes."""
    lease: BufferedReader | None = field(default=None, repr=False, compare=False)
    """Keeps a cached file from being evicted for as long as it is referred to."""
    seen: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    """Which file was hashed, and when it was last written to; None in the cache, where nobody writes to one."""


def fetch(
    source: ModelSource, cache: Path, progress: Progress | None = None, *, max_bytes: int = MAX_MODEL_BYTES
) -> FetchedModel:
    """Bring a model file to this machine and check its digest.

    Without a pinned digest a remote file is fetched anew each time, since only its bytes tell whether it has changed.

    Args:
        source: Where the file is; ``file://./`` is relative to the working directory.
        cache: Folder of the cache; made where it is missing, and shared safely between processes.
        progress: Told of each block.
        max_bytes: Larger files are refused.

    Raises:
        ModelUnavailableError: missing, refused, cut short, too large, or no room for it.
        ModelNotCachedError: the same of one that the cache could have had.
        DigestMismatchError: its bytes are not those that the manifest pins.
    """
    uri = urllib.parse.urlsplit(source.uri)
    if uri.scheme == "file":
        return _in_place(source, _local_path(uri), progress, max_bytes)
    if source.sha256 is None:
        return _store(source, cache, progress, max_bytes)
    entry = _entry(cache, source.sha256)
    with _locked(entry):
        if (found := _intact(entry, source.sha256)) is not None:
            return found
        try:
            return _store(source, cache, progress, max_bytes)
        except ModelUnavailableError as error:
            raise ModelNotCachedError(str(error)) from error


def to_parse(model: FetchedModel) -> Path:
    """The file of a model that was fetched before, to be parsed at once.

    One that lies in place may have been overwritten meanwhile: if it was touched at all, it is hashed again.

    Raises:
        ModelUnavailableError: it is gone.
        DigestMismatchError: its bytes are not those that were fetched.
    """
    if model.seen is None:
        return model.path
    try:
        with model.path.open("rb") as file:
            if _seen(os.fstat(file.fileno())) == model.seen:
                return model.path
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailableError(f"model {model.path}: {error.strerror}; it was there before") from error
    if digest != model.sha256:
        raise DigestMismatchError(
            f"model {model.path}: its sha256 is {digest}, it was {model.sha256} at the start; "
            "the file was overwritten: put the former one back, or start anew with this one"
        )
    return model.path


def at_hand(source: ModelSource, cache: Path) -> bool:
    """Whether a fetch would find the file on this machine; it is not read."""
    pinned = source.sha256
    return source.uri.startswith("file://") or (pinned is not None and _entry(cache, pinned).is_file())


def redacted(uri: str) -> str:
    """The address without user, password, query and fragment: those carry secrets and must not reach a log."""
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _in_place(source: ModelSource, path: Path, progress: Progress | None, max_bytes: int) -> FetchedModel:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelUnavailableError(f"model {source.uri}: {path} is no regular file")
            digest, size = _copy(file, None, progress, status.st_size, max_bytes, source.uri)
    except OSError as error:
        raise ModelUnavailableError(
            f"model {source.uri}: {error.strerror}: {path}; check the path in the manifest"
        ) from error
    _check(source, digest)
    return FetchedModel(path, digest, size, seen=_seen(status))


def _seen(status: os.stat_result) -> tuple[int, ...]:
    """Changes with every write to a file, and with every other file in its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _local_path(uri: urllib.parse.SplitResult) -> Path:
    # file:///absolute, file://localhost/absolute, file://./relative
    host = "" if uri.netloc == "localhost" else uri.netloc
    if host not in ("", ".", ".."):
        raise ModelUnavailableError(f"model {uri.geturl()}: expected file:///absolute/path or file://./relative/path")
    return Path(urllib.parse.unquote(host + uri.path)).absolute()


def _store(source: ModelSource, cache: Path, progress: Progress | None, max_bytes: int) -> FetchedModel:
    """Download into the cache; the name is known only when all bytes are."""
    where = redacted(source.uri)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, prefix=PARTIAL, delete=False) as partial:
            try:
                fcntl.flock(partial, fcntl.LOCK_SH)
                with _opened(source.uri) as (remote, total):
                    digest, size = _copy(remote, partial, progress, total, max_bytes, where)
                _check(source, digest)
                entry = _entry(cache, digest)
                entry.parent.mkdir(parents=True, exist_ok=True)
                partial.flush()
                os.fsync(partial.fileno())
                held = lease(Path(partial.name))
                Path(partial.name).rename(entry)
            except BaseException:
                Path(partial.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ModelUnavailableError(f"model {where}: {_reason(error)}; {_advice(error)}") from error
    return FetchedModel(entry, digest, size, held)


def _copy(
    source: BinaryIO, target: IO[bytes] | None, progress: Progress | None, total: int | None, max_bytes: int, where: str
) -> tuple[str, int]:
    """Read to the end; returns (SHA-256, bytes)."""
    if total is not None and total > max_bytes:
        raise ModelUnavailableError(f"model {where}: {total} bytes, at most {max_bytes} are accepted")
    hasher, size = hashlib.sha256(), 0
    deadline = time.monotonic() + FETCH_SECONDS
    while block := source.read(_BLOCK):
        hasher.update(block)
        size += len(block)
        if size > max_bytes:
            raise ModelUnavailableError(f"model {where}: more than the {max_bytes} bytes that are accepted")
        if time.monotonic() > deadline:
            raise ModelUnavailableError(f"model {where}: {size} bytes after {FETCH_SECONDS / 3600:.0f} hours; given up")
        if target is not None:
            target.write(block)
        if progress is not None:
            progress(size, total)
    if total is not None and size != total:
        raise ModelUnavailableError(f"model {where}: cut short at {size} of {total} bytes; try again")
    return hasher.hexdigest(), size


def _check(source: ModelSource, digest: str) -> None:
    if source.sha256 is not None and digest != source.sha256:
        raise DigestMismatchError(
            f"model {redacted(source.uri)}: its sha256 is {digest}, the manifest pins {source.sha256}; "
            "the file was changed or damaged, or the manifest is for another one"
        )


def _entry(cache: Path, digest: str) -> Path:
    return cache / "sha256" / digest[:2] / digest[2:]


def _intact(entry: Path, digest: str) -> FetchedModel | None:
    """The cached file if it is there and unharmed; a damaged one is to be fetched again."""
    file = lease(entry)
    if file is None:
        return None
    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
        file.close()
        return None
    with contextlib.suppress(OSError):  # the cache may be another user's: then its own fetches tell what is used
        os.utime(entry)
    return FetchedModel(entry, digest, os.fstat(file.fileno()).st_size, file)


@contextlib.contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """One fetcher a file: the others wait, and then find it in the cache. The kernel frees the lock of a dead one."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = (entry.parent / f"{entry.name}{LOCK_SUFFIX}").open("ab")
    except OSError as error:
        raise ModelUnavailableError(
            f"model cache: {error.strerror}: {error.filename}; give a folder that can be written"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """A remote file with its size, where the server tells it."""
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        with _http(uri) as opened:
            yield opened
    else:
        with _fsspec(uri, scheme) as opened:
            yield opened


@contextlib.contextmanager
def _http(uri: str) -> Iterator[tuple[BinaryIO, int | None]]:
    parts = urllib.parse.urlsplit(uri)
    credentials, _, host = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(address)  # noqa: S310 - the caller lets through http and https alone
    if credentials:
        token = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
        # Unredirected: a redirect to another host must not carry the password along.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with _http_opener().open(request, timeout=SILENCE_SECONDS) as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length and length.isdigit() else None
    except urllib.error.HTTPError as error:
        raise ModelUnavailableError(
            f"model {redacted(uri)}: the server answers {error.code} {_line(error.reason)}"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise ModelUnavailableError(f"model {redacted(uri)}: no proper HTTP answer: {error!r}") from error


def _http_opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP alone: a redirect to file: or ftp: leads nowhere. urllib itself bounds redirects at 10."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextlib.contextmanager
def _fsspec(uri: str, scheme: str) -> Iterator[tuple[BinaryIO, int | None]]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'ensembles[{extra}]'" if extra else str(error)
        raise ModelUnavailableError(
            f"model {redacted(uri)}: reading {scheme}:// needs a further package: {advice}"
        ) from error
    except ValueError as error:
        raise ModelUnavailableError(
            f"model {redacted(uri)}: {scheme}:// is not known; expected file://, http://, https://, s3://, gs:// or hf://"
        ) from error
    try:
        with filesystem.open(path, "rb") as remote:
            yield remote, getattr(remote, "size", None)
    except (ModelUnavailableError, DigestMismatchError, OSError):
        raise
    except Exception as error:  # each implementation raises the errors of its own client library
        raise ModelUnavailableError(f"model {redacted(uri)}: {type(error).__name__}: {error}") from error


def _reason(error: OSError) -> str:
    """What an I/O error says, without the address that it may repeat."""
    if isinstance(error, urllib.error.URLError):
        return _line(error.reason)
    if isinstance(error, TimeoutError):
        return f"timed out, nothing came for {SILENCE_SECONDS:g} s"
    return error.strerror or _STORES.get(type(error)) or type(error).__name__


def _advice(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "make room in the cache"
    if isinstance(error, PermissionError) and error.errno is None:  # what the disk refuses has a number
        return "check the credentials, and what they may read"
    return "check the address, the network and the cache folder"


_STORES: dict[type, str] = {PermissionError: "the store refuses it", FileNotFoundError: "the store has no such file"}
"""What stores' own errors mean, which have no number."""


def _line(reason: object) -> str:
    return " ".join(str(reason).split())
