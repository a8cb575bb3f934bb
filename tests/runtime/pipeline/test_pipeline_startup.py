"""Starts that fail: one clear line, its own exit code, nothing left behind."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble_runtime.config import RuntimeConfig


async def nothing(client: Any) -> None:
    """Never comes to run."""


def changed(config: RuntimeConfig, **changes: Any) -> RuntimeConfig:
    return RuntimeConfig.model_validate({**config.model_dump(by_alias=True), **changes})


def with_member(config: RuntimeConfig, **model: Any) -> RuntimeConfig:
    """The same with another source of its last member's model."""
    members = config.model_dump(by_alias=True)["members"]
    members[-1]["model"].update(model)
    return changed(config, members=members)


@pytest.fixture
def refused(start: Callable[..., Any]) -> Callable[[RuntimeConfig], tuple[int, str]]:
    """The exit code and the line with which a start ends."""

    def run(config: RuntimeConfig) -> tuple[int, str]:
        _, code, message = start(config).refusal()
        assert "\n" not in message
        return code, message

    return run


def test_port_taken(refused: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, message = refused(simulated(listen={"port": port}))
    assert (code, message) == (72, f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_missing_model(refused: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    config = with_member(on_cores({"a": {"file": "steady"}}), uri="file:///nowhere/model.pt")
    code, message = refused(config)
    assert code == 66
    assert "/nowhere/model.pt" in message


def test_wrong_digest(refused: Callable[..., Any], on_cores: Callable[..., Any], model_files: Path) -> None:
    code, message = refused(with_member(on_cores({"a": {"file": "steady"}}), sha256="0" * 64))
    assert code == 67
    assert "0" * 64 in message
    assert hashlib.sha256((model_files / "steady.pt").read_bytes()).hexdigest() in message


@pytest.mark.parametrize("role", ["member", "stacking model"])
def test_corrupt_model(refused: Callable[..., Any], on_cores: Callable[..., Any], role: str) -> None:
    if role == "member":
        code, message = refused(on_cores({"sound": {"file": "steady"}, "broken": {"file": "corrupt"}}))
        assert message.startswith("member 'broken': ")
    else:
        code, message = refused(on_cores({"sound": {"file": "steady"}}, stacking="corrupt"))
        assert "stacking" in message
    assert code == 68


def test_outputs_that_differ_from_the_configuration(refused: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    code, message = refused(on_cores({"sound": {"file": "steady"}, "broken": {"file": "broken"}}))
    assert code == 68
    assert message.startswith("member 'broken': output 'y' has shape [1, 2], expected [1, 3]")


def test_unavailable_core(refused: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    config = on_cores({"a": {"file": "steady"}})
    (device,) = config.model_dump(by_alias=True)["devices"]
    absent = max(os.sched_getaffinity(0)) + 1000
    code, message = refused(changed(config, devices=[{**device, "cores": [absent]}]))
    assert code == 69
    assert str(absent) in message


def test_a_member_that_is_never_ready(refused: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    config = on_cores({"a": {"file": "steady"}}, serving={"startupTimeoutMs": 1})
    code, message = refused(config)
    assert (code, message) == (73, "member 'a' was not ready within 0.001 s (serving.startupTimeoutMs)")


def test_a_simulated_member_without_stated_seconds(refused: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    config = simulated(["a"])
    (device,) = config.model_dump(by_alias=True)["devices"]
    code, message = refused(changed(config, devices=[{**device, "seconds": {}}]))
    assert code == 65
    assert "seconds: no point for member 'a'" in message


@pytest.mark.parametrize(
    ("row", "rows"), [([1 << 20], 1 << 17), ([1 << 30, 1 << 30], 1 << 20)], ids=["half a tebibyte", "2**80 bytes"]
)
def test_an_arena_larger_than_any_memory(
    refused: Callable[..., Any], simulated: Callable[..., Any], row: list[int], rows: int
) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": row}
    code, message = refused(simulated(inputs=[tensor], serving={"queueRows": rows}))
    assert code == 71
    assert message.startswith("the arena needs ")
    assert "lower serving.queueRows" in message


def in_namespace(folder: Path, config: RuntimeConfig, size: str) -> tuple[int, str]:
    """Serve from the command line where /dev/shm is a file system of its own; its exit code and standard error."""
    file = folder / "config.json"
    file.write_text(config.model_dump_json(by_alias=True))
    serve = (
        f"mount -t tmpfs -o size={size} none /dev/shm"
        " && echo 1000 > /proc/self/oom_score_adj"  # should it take the memory after all, it is to be the victim
        f" && exec {sys.executable} -m ensemble_runtime serve {file}"
    )
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *rights, "sh", "-c", serve]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("size", "rows", "complaint"),
    [("1m", 8192, "/dev/shm has 1 MiB free"), ("64t", 1 << 20, "MiB of memory are available")],
    ids=["/dev/shm too small", "/dev/shm larger than memory"],
)
def test_shared_memory_that_does_not_suffice(
    tmp_path: Path, simulated: Callable[..., Any], size: str, rows: int, complaint: str
) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1 << 18]}  # 1 MiB a row
    code, errors = in_namespace(tmp_path, simulated(inputs=[tensor], serving={"queueRows": rows}), size)
    assert code == 71, errors
    assert complaint in errors.splitlines()[-1]
