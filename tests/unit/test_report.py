"""Termination messages: what goes in comes out, within what Kubernetes keeps."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.report import MAX_BYTES, leave, pack, reason, unpack

RECORD = {"digest": "a" * 64, "deviceType": "NVIDIA-A100-SXM4-40GB", "precision": "FP32", "baselineBytes": 10**9}


def records(count: int) -> list[dict[str, Any]]:
    return [RECORD | {"batchSize": 2**i, "seconds": 0.001 * 1.7**i, "memoryBytes": 10**8 * i} for i in range(count)]


def test_a_whole_profile_fits() -> None:
    assert unpack(pack(records(32))) == records(32)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=20), st.text(max_size=200) | st.integers(), max_size=8), max_size=20))
def test_what_does_not_fit_is_left_out_at_the_end(given_records: list[dict[str, Any]]) -> None:
    text = pack(given_records)
    assert len(text) <= MAX_BYTES
    found = unpack(text)
    assert found == given_records[: len(found)]


# Without a time: a test is known by its parameter, and every process must find the same tests.
@pytest.mark.parametrize(
    "text",
    [
        "",
        "ensemble-runtime: model https://h/m: the server answers 404",
        "AAAA",
        pack(records(3))[:-8],
        base64.b64encode(gzip.compress(b"1\n2", mtime=0)).decode(),
        base64.b64encode(gzip.compress(b" " * 2**24, mtime=0)).decode(),
    ],
)
def test_anything_else_is_no_profile(text: str) -> None:
    with pytest.raises(ValueError, match="no packed records"):
        unpack(text)


def test_a_reason_is_one_line() -> None:
    assert reason(ValueError("a\n  b")) == "a b"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("é" * 4000)).encode()) <= MAX_BYTES


def test_a_message_that_cannot_be_left_is_no_failure(tmp_path: Path) -> None:
    leave("x", tmp_path / "absent" / "log")
    leave("x", None)
    leave("x", tmp_path / "log")
    assert (tmp_path / "log").read_text() == "x"
