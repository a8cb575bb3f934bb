"""NVML made of a stub library that the tests compile; the real pynvml loads it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Finished = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def stub_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("stub_nvml.c")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", folder / "libnvidia-ml.so.1", source], check=True
    )
    return folder


@pytest.fixture
def with_stub(stub_nvml: Path) -> Callable[..., Finished]:
    """Runs Python code with the stub in place of the driver's library; settings are STUB_NVML_*."""

    def run(code: str, **settings: str) -> Finished:
        variables = {f"STUB_NVML_{name.upper()}": value for name, value in settings.items()}
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stub_nvml), **variables}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture
def discovered(with_stub: Callable[..., Finished]) -> Callable[..., list[dict[str, Any]]]:
    """The devices that a process with the stub finds."""
    code = (
        "import json; from ensemble_runtime.devices.local import discover;"
        "print(json.dumps([d.model_dump(mode='json') for d in discover()]))"
    )

    def run(**settings: str) -> list[dict[str, Any]]:
        finished = with_stub(code, **settings)
        assert finished.returncode == 0, finished.stderr
        found: list[dict[str, Any]] = json.loads(finished.stdout)
        return found

    return run
