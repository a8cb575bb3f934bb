"""Models from an S3-compatible store, as a pod fetches them: credentials and the store's address in its environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.store import KEY, SECRET, Store

CONTENT = b"model bytes " * 100_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store() -> Iterator[Store]:
    with Store({"m.onnx": CONTENT}) as listening:
        yield listening


def fetch(
    tmp_path: Path, store: Store, *, key: str = KEY, secret: str = SECRET, name: str = "m.onnx"
) -> subprocess.CompletedProcess[str]:
    """What the init container does."""
    model = {"uri": f"s3://models/{name}", "format": "ONNX", "sha256": DIGEST}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"members": [{"name": "m", "model": model}]}))
    given = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": store.url}
    environment = os.environ | given | {"HOME": str(tmp_path), "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-m", "ensemble_runtime", "fetch", "--cache", str(tmp_path / "cache"), str(request)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_a_model_is_fetched_with_the_keys_of_the_environment(tmp_path: Path, store: Store) -> None:
    run = fetch(tmp_path, store)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["sha256"] == DIGEST and Path(found["path"]).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": "stranger"}, "the store refuses it; check the credentials"),
        ({"secret": "hidden-value-of-another"}, "the store refuses it; check the credentials"),
        ({"name": "none.onnx"}, "the store has no such file; check the address"),
    ],
    ids=["key", "secret", "name"],
)
def test_what_the_store_refuses_is_said_without_the_secret(
    tmp_path: Path, store: Store, wrong: dict[str, str], said: str
) -> None:
    run = fetch(tmp_path, store, **wrong)
    assert run.returncode == 66 and said in run.stderr
    assert f"s3://models/{wrong.get('name', 'm.onnx')}" in run.stderr
    assert "hidden-value" not in run.stderr + run.stdout and "Traceback" not in run.stderr
    assert store.asked[wrong.get("name", "m.onnx")] > 0
