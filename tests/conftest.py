"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure: how long an example takes is for the benchmarks. What CI tries, it tries again.
settings.register_profile("ensembles", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ensembles")

_RUNTIME = Path(__file__).parent / "runtime"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those that share a cluster, or the cores, stay together, one after the other."""
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))


def _group(item: pytest.Item) -> str | None:
    used = getattr(item, "fixturenames", ())
    if "machines" in used:
        return "machines"
    if "control_plane" in used:
        return "control plane"
    return "runtime" if item.path.is_relative_to(_RUNTIME) else None
