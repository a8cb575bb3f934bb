"""How a container tells Kubernetes what it found, or why it failed: its termination message.

Both wings read and write it. Kubernetes keeps 4096 bytes of it: a reason, or some hundred records, compressed.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 4096
_MAX_UNPACKED = 2**20
_REASON_BYTES = 2048


def pack(records: Sequence[dict[str, Any]]) -> str:
    """Records as text of at most MAX_BYTES: JSON lines, gzip, base64. What does not fit is left out at the end."""
    kept = len(records)
    while True:
        lines = "\n".join(json.dumps(record, separators=(",", ":")) for record in records[:kept])
        text = base64.b64encode(gzip.compress(lines.encode(), mtime=0)).decode()
        if len(text) <= MAX_BYTES:
            return text
        kept -= 1


def unpack(text: str) -> list[dict[str, Any]]:
    """The records that `pack` was given.

    Raises:
        ValueError: The text is something else, e.g. the reason of a failure.
    """
    try:
        inflate = zlib.decompressobj(wbits=31)
        lines = inflate.decompress(base64.b64decode(text.strip(), validate=True), _MAX_UNPACKED).decode()
        if not inflate.eof:
            raise ValueError(f"cut short, or more than {_MAX_UNPACKED} bytes")
        records = [json.loads(line) for line in lines.splitlines()]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"no packed records: {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("no packed records: expected JSON objects")
    return records


def reason(error: Exception) -> str:
    """What is wrong, as one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line.encode()[:_REASON_BYTES].decode(errors="ignore")


def leave(message: str, path: Path | None) -> None:
    """Write a termination message; best effort, since the exit code and the logs tell as well."""
    if path is not None:
        try:
            path.write_text(message)
        except OSError:
            return
