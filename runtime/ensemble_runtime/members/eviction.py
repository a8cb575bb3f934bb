"""Keeps the model cache within a size: files that were used longest ago go, never one that somebody uses.

The cache may be shared by all pods of a node. Whoever uses a file holds a shared lock on it (`lease`), which the kernel
gives up with its process; a file goes only under an exclusive lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

PARTIAL = "fetch-"
"""Files of this prefix are still being fetched, or were when their process died."""
LOCK_SUFFIX = ".lock"

_log = logging.getLogger(__name__)


def lease(path: Path) -> BufferedReader | None:
    """Open a cached file so that it stays until this is closed; None where it is missing or about to go."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if os.fstat(file.fileno()).st_nlink == 0:  # it went between the two calls
        file.close()
        return None
    return file


def trim(cache: Path, max_bytes: int) -> int:
    """Evict files until the rest fits, or all that is left is in use.

    Args:
        cache: Folder of the cache.
        max_bytes: What its files may take together.

    Returns:
        Bytes that they take now.
    """
    if not cache.is_dir():
        return 0
    with (cache / f"trim{LOCK_SUFFIX}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would evict more than it takes
        entries = sorted(_entries(cache), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= max_bytes:
                break
            if _evicted(entry.path):
                total -= entry.size
                _log.info("evicted a model", extra={"path": str(entry.path), "bytes": entry.size})
    if total > max_bytes:
        _log.warning("the models in use exceed the cache", extra={"bytes": total, "limit": max_bytes})
    return total


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


def _entries(cache: Path) -> Iterator[_Entry]:
    for path in (*cache.glob("sha256/??/*"), *cache.glob(f"{PARTIAL}*")):
        if path.suffix == LOCK_SUFFIX:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield _Entry(path, status.st_size, status.st_mtime)


def _evicted(path: Path) -> bool:
    try:
        file = path.open("rb+")  # network file systems lock exclusively only what is open for writing
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # another file has taken its place
                return False
            path.unlink()
        except OSError:
            return False
    return True
