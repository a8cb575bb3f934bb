"""The names of what an ensemble owns: deterministic, so that doing something twice does it once."""

from __future__ import annotations

import hashlib
import json

from ensemble_runtime.config import Partition

MAX_NAME = 63
"""Of a label value, a Service and a pod's host name; so no name here is longer."""
_TAIL = 8


def pod_name(ensemble: str, copy_hash: str, copy: int, shard: int) -> str:
    """Pod of one shard of one copy; `copy_hash` tells the copy's plan and revision (see `revision.copy_hash`)."""
    return cut(ensemble, f"-{copy_hash}-{copy}-{shard}")


def config_map_name(ensemble: str, content_hash: str) -> str:
    """ConfigMap that holds one RuntimeConfig."""
    return cut(ensemble, f"-config-{content_hash}")


def shards_name(ensemble: str) -> str:
    """Headless Service through which the shards of a copy find each other."""
    return cut(ensemble, "-shards")


def token_name(ensemble: str) -> str:
    """Secret with which the shards of a copy know each other."""
    return cut(ensemble, "-token")


def profiling_name(
    model: str, device_type: str, precision: str, node_kind: str, partition: Partition | None = None
) -> str:
    """Pod that measures a model (its digest, or its address where that is not known) on a type of device, or a pair."""
    split = () if partition is None else (partition.objective, partition.latency_ms)
    return f"profile-{digest((model, device_type, precision, node_kind, *split), 12)}"


def cut(ensemble: str, suffix: str) -> str:
    """The ensemble's name with a suffix; a name too long for that ends in a hash of itself instead."""
    room = MAX_NAME - len(suffix)
    if len(ensemble) <= room:
        return ensemble + suffix
    return f"{ensemble[: room - _TAIL - 1].rstrip('-')}-{digest(ensemble, _TAIL)}{suffix}"


def digest(content: object, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of plain data, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
