"""The layout keeps its promises."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("wing", ["operator", "runtime"])
def test_a_wing_is_a_folder_and_no_package(wing: str) -> None:
    assert (ROOT / wing).is_dir()
    assert not (ROOT / wing / "__init__.py").exists()


def test_the_folder_operator_does_not_shadow_pythons_own() -> None:
    # `python -c` puts the working folder first on sys.path, in front of the standard library.
    script = "import collections, operator; print(operator.__file__)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert not Path(run.stdout.strip()).is_relative_to(ROOT / "operator")


def test_no_module_is_named_like_a_standard_one_where_scripts_run() -> None:
    # Only there does a script's own folder become sys.path[0].
    scripts = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert scripts
    assert not {path.stem for path in scripts} & sys.stdlib_module_names - {"__init__"}
