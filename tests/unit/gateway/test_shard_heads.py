"""Which heads a shard's fast lane serves: those of its own path that carry the ensemble's token."""

from __future__ import annotations

import pytest

from ensemble_runtime.gateway.heads import HeadReader
from ensemble_runtime.pipeline.remote_wire import TARGET

READER = HeadReader((TARGET,), 1000, b"Bearer word")


def head(*authorizations: str, target: str = TARGET) -> bytes:
    fields = [f"Authorization: {value}" for value in authorizations]
    lines = [f"POST {target} HTTP/1.1", "Host: shard", *fields, "Content-Length: 10", "", ""]
    return "\r\n".join(lines).encode()


def test_who_knows_the_token_is_served() -> None:
    found = READER.read(head("Bearer word"))
    assert found is not None and found.length == 10


@pytest.mark.parametrize(
    "raw",
    [head(), head("Bearer wor"), head("Bearer words"), head("bearer word"), head("word"),
     head("Bearer word", "Bearer word"),
     head("Bearer word", target="/v2/models/ensemble/infer")],
)  # fmt: skip
def test_anybody_else_is_left_to_the_lane_that_explains(raw: bytes) -> None:
    assert READER.read(raw) is None
    assert READER.known(raw) is None
