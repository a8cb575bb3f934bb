"""The benchmarks' problems, for the tests as well."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ensemble_operator.planner.problem import Problem


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "planner_cases.py"
    spec = importlib.util.spec_from_file_location("planner_cases", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def draw(cases: ModuleType) -> Callable[..., Problem]:
    """seed -> a random problem; keywords max_devices and max_members."""
    random_problem: Callable[..., Problem] = cases.random_problem
    return random_problem
