"""What `plan --measure` found to be the fastest is what the same manifest gets from then on, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_operator.cli.measured_plans import Measured, keep, kept
from ensemble_operator.cli.planning import best_plans
from ensemble_operator.cli.preparing import Prepared, prepare, read_manifest
from ensemble_operator.inventory.device import Device
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.table import table
from ensemble_runtime.config import DeviceKind


@pytest.fixture
def prepared(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return prepare(manifest, [])


def test_the_fastest_is_kept_also_against_the_prediction(
    prepared: Prepared, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept(prepared) is None
    first, second = best_plans(prepared.problem, 2)
    assert keep(prepared, Measured(second, 123.4))
    found = kept(prepare(manifest, []))
    assert found == Measured(second, 123.4) and found.plan.digest != first.digest
    assert "plan --measure" in capsys.readouterr().err
    assert keep(prepared, Measured(first, 234.5))
    assert kept(prepared) == Measured(first, 234.5)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("seconds: 0.04", "seconds: 0.05"),
        ("a" * 64, "c" * 64),
        ("count: 4", "count: 5"),
        ("shape: [4]", "shape: [5]"),
        ("devices: {", "serving: {hosting: PerDevice}, devices: {"),
    ],
    ids=["profile", "model", "devices", "input", "serving"],
)
def test_whatever_it_depends_on_changes_it_is_planned_anew(
    prepared: Prepared, manifest: Path, was: str, becomes: str
) -> None:
    assert keep(prepared, Measured(best_plans(prepared.problem)[0], 1.0))
    manifest.write_text(manifest.read_text().replace(was, becomes).replace("}, devices: {", "}\n  devices: {"))
    assert kept(prepare(manifest, [])) is None


def test_members_on_two_devices_stay_there(prepared: Prepared, manifest: Path) -> None:
    manifest.write_text(
        manifest.read_text().replace("name: small, model", "name: small, partition: {objective: Latency}, model", 1)
    )
    ensemble = read_manifest(manifest).ensemble
    split = ensemble.spec.members[1].partition
    devices = (
        Device("gpu0", "local", DeviceKind.SIMULATED, "A100", 650 << 20),
        Device("cpu0", "local", DeviceKind.CPU, "cpu-1", 1000 << 20, cores=(0,)),
    )
    on_both = Profile("b" * 64, "A100:cpu-1", "FP32", (Point(1, 0.01, 50 << 20, 100 << 20),), split)
    able = replace(prepared, ensemble=ensemble, devices=devices, profiles=prepared.profiles.merge(table([on_both])))
    (plan,) = best_plans(able.problem)
    assert plan.problem.split == {"small"}
    assert keep(able, Measured(plan, 1.0))
    found = kept(able)
    assert found is not None and found.plan.digest == plan.digest
    assert found.plan.problem == plan.problem


def test_where_the_fastest_is_not_what_is_asked_for_it_is_not_kept(prepared: Prepared, manifest: Path) -> None:
    objective = "  objective: {goal: Latency, rate: 10}\n  devices:"
    manifest.write_text(manifest.read_text().replace("  devices:", objective))
    asked = prepare(manifest, [])
    assert not keep(asked, Measured(best_plans(asked.problem)[0], 1.0))
    assert kept(asked) is None


def test_what_cannot_be_read_is_passed_over_with_a_word(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keep(prepared, Measured(best_plans(prepared.problem)[0], 1.0))
    (file,) = (tmp_path / "cache" / "ensembles" / "plans").iterdir()
    file.write_text(file.read_text()[:-9])
    assert kept(prepared) is None
    assert str(file) in capsys.readouterr().err


def test_what_cannot_be_written_is_told(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").write_text("")
    assert not keep(prepared, Measured(best_plans(prepared.problem)[0], 1.0))
    assert "cannot be kept" in capsys.readouterr().err
