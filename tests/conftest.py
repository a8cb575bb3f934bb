"""What holds for all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A busy machine is no failure: how long an example takes is for the benchmarks. What CI tries, it tries again.
settings.register_profile("ensembles", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ensembles")

STREAMS = ("tests/cluster/machines/", "tests/cluster/", "tests/runtime/")
"""Tests that share a cluster, or the cores: one after the other, the longest stream first."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With `--numprocesses` the streams run side by side; a process that is through with one takes others."""
    config.option.loadscopereorder = False  # not by their number: few tests of real nodes take longest
    return Streams(config, log)


class Streams(LoadScopeScheduling):
    """Keeps a stream in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((stream for stream in STREAMS if file.startswith(stream)), file)


@pytest.fixture(scope="session")
def recurrent_models() -> ModuleType:
    """The module that builds the benchmarks' recurrent models."""
    path = Path(__file__).parents[1] / "benchmarks" / "recurrent_models.py"
    spec = importlib.util.spec_from_file_location("recurrent_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
