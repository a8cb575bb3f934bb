"""`make demo`, as it is: training, serving through ensemblectl, the table, the stop."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def models(folder: Path) -> Path:
    run = run_script("train.py", folder, "--out", str(folder / "models"))
    assert run.returncode == 0, run.stderr
    return folder / "models"


def run_script(script: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, DIGITS / script, *words], env=environment, capture_output=True, text=True, timeout=500
    )


def read(manifest: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(manifest.read_text())
    return document


def accuracies(table: str) -> dict[str, float]:
    """Name -> per cent, of every row of the table that has one."""
    return {name: float(value) for name, value in re.findall(r"│ ([\w-]+) .*?│ +(\d+\.\d\d)% │", table)}


def test_training_pins_what_it_writes(models: Path) -> None:
    members = read(models / "ensemble.yaml")["spec"]["members"]
    assert {member["model"]["format"] for member in members} == {"TorchExport", "TorchScript", "ONNX"}
    for member in members:
        content = (models / member["model"]["uri"].removeprefix("file://./")).read_bytes()
        assert member["model"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert member["weight"] > 0


def test_held_out_images_are_raw_pixels_and_digits(models: Path) -> None:
    held_out = np.load(models / "held-out.npz")
    assert held_out["image"].shape == (797, 64)
    assert held_out["image"].min() == 0 and held_out["image"].max() == 16
    assert set(held_out["digit"]) == set(range(10))


def test_the_ensemble_is_ahead_of_every_member(models: Path, folder: Path) -> None:
    drawing = folder / "demo.svg"
    run = run_script("demo.py", folder, "--models", str(models), "--svg", str(drawing))
    assert run.returncode == 0, run.stdout + run.stderr
    found = accuracies(run.stdout)
    ensemble = found.pop("ensemble")
    assert found.keys() == {"mlp", "cnn", "attention", "wide-mlp", "gru"}
    assert ensemble > max(found.values())
    assert "bottleneck" in run.stdout
    assert re.search(r"Throughput: [\d,]+ images/s", run.stdout)
    assert drawing.read_text().startswith("<svg")


def test_an_ensemble_that_is_no_better_is_a_failure(models: Path) -> None:
    manifest = read(models / "ensemble.yaml")
    for member in manifest["spec"]["members"]:
        member["weight"] = 1.0 if member["name"] == "cnn" else 0.0
    dictated = models.with_name("dictated")
    dictated.mkdir()
    for path in models.iterdir():
        (dictated / path.name).symlink_to(path)
    (dictated / "ensemble.yaml").unlink()
    (dictated / "ensemble.yaml").write_text(yaml.safe_dump(manifest))

    run = run_script("demo.py", models.parent, "--models", str(dictated))

    found = accuracies(run.stdout)
    assert run.returncode == 1, run.stdout + run.stderr
    assert found["ensemble"] == found["cnn"]
