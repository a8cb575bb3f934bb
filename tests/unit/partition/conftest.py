"""Two devices and the models of the benchmarks, for partitions."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.partition.graph import Graph, parse


@pytest.fixture(scope="session")
def recurrent_models() -> ModuleType:
    """The module that builds the benchmarks' recurrent models."""
    path = Path(__file__).parents[3] / "benchmarks" / "recurrent_models.py"
    spec = importlib.util.spec_from_file_location("recurrent_models", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def two_cores() -> tuple[Device, Device]:
    """Two sets of one core; the same one where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    one, other = (
        Device(name=f"cpu{i}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=(core,))
        for i, core in enumerate((cores[0], cores[-1]))
    )
    return one, other


@pytest.fixture
def small_stack(recurrent_models: ModuleType) -> Graph:
    """Two layers of LSTM over 16 steps."""
    return parse(recurrent_models.stacked("LSTM", 64, 2, 16), {"x": (1, 16, 64)})
