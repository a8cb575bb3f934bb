from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.cli import measuring
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.runtime_command import RuntimeCommandError
from ensemble_operator.manifests.question import question
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import ProfileStore
from ensemble_operator.profiles.table import Want, table
from ensemble_runtime.config import DeviceKind, Partition, PartitionObjective
from ensemble_runtime.errors import ModelInvalidError

DIGEST = "a" * 64


def core_set(index: int) -> Device:
    return Device(f"cpu{index}", "local", DeviceKind.CPU, "cpu-1", 2**30, (index,))


def result(size: int, seconds: float) -> dict[str, Any]:
    return {"digest": DIGEST, "batchSize": size, "seconds": seconds, "memoryBytes": 1, "baselineBytes": 0}


def test_core_sets_are_measured_beside_the_others_and_the_last_look_counts(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def records(command: str, *, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        asked.append(document)
        yield {"member": "big", "deviceType": "cpu-1", "batchSize": 1, "done": 0, "total": 2}
        yield from (result(1, 0.4), result(2, 0.5), result(1, 0.1), result(2, 0.2))

    monkeypatch.setattr(measuring, "records", records)
    spec = load_manifest(manifest.read_text(), folder="/").ensemble.spec
    gpu = Device("gpu0", "local", DeviceKind.GPU, "A100", 2**30, uuid="GPU-1")
    store = ProfileStore(tmp_path, "here")
    want = Want(DIGEST, "cpu-1", "FP32", (1, 2))
    digests = {"big": DIGEST, "small": "b" * 64}
    found = measuring.measure(spec, digests, [gpu, core_set(0), core_set(1)], [want], store)
    assert [[device["name"] for device in document["peers"]] for document in asked] == [["cpu0", "cpu1"]]
    for known in (found, store.load([want.key])):
        profile = known.get(DIGEST, "cpu-1", "FP32")
        assert profile and [point.seconds for point in profile.points] == [0.1, 0.2]


def test_of_two_members_of_one_file_the_one_is_measured_that_is_to_be_split(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def records(command: str, *, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        asked.append(document)
        yield result(1, 0.4) | {"secondBytes": 2}

    monkeypatch.setattr(measuring, "records", records)
    spec = load_manifest(manifest.read_text(), folder="/").ensemble.spec
    split = Partition(objective=PartitionObjective.MEMORY, latency_ms=50)
    big, small = spec.members
    spec = spec.model_copy(update={"members": (big, small.model_copy(update={"partition": split}))})
    want = Want(DIGEST, "cpu-1:cpu-1", "FP32", (1,), split)
    digests = {"big": DIGEST, "small": DIGEST}
    found = measuring.measure(spec, digests, [core_set(0), core_set(1)], [want], ProfileStore(tmp_path, "here"))
    (document,) = asked
    assert document["member"]["partition"] == {"objective": "Memory", "latencyMs": 50}
    assert found.get(*want.key) and not found.get(*want.key[:3])


def test_what_cannot_be_split_is_planned_whole_and_a_broken_model_is_an_error(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def records(command: str, *, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from ()
        raise RuntimeCommandError(f"{command}: cannot be partitioned", ModelInvalidError.exit_code)

    monkeypatch.setattr(measuring, "records", records)
    spec = load_manifest(manifest.read_text(), folder="/").ensemble.spec
    split = Partition(objective=PartitionObjective.LATENCY)
    members = tuple(member.model_copy(update={"partition": split}) for member in spec.members)
    spec = spec.model_copy(update={"members": members})
    digests = {"big": DIGEST, "small": "b" * 64}
    cores, store = [core_set(0), core_set(1)], ProfileStore(tmp_path, "here")
    pair = Want(DIGEST, "cpu-1:cpu-1", "FP32", (1,), split)
    assert not measuring.measure(spec, digests, cores, [pair], store).profiles
    assert "cannot be partitioned; the planner does without it" in capsys.readouterr().err
    with pytest.raises(RuntimeCommandError):
        measuring.measure(spec, digests, cores, [Want(DIGEST, "cpu-1", "FP32", (1,))], store)


def test_pairs_are_measured_at_the_middle_of_their_batch_sizes_whatever_the_plan(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def records(command: str, *, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        asked.append(document)
        yield {"digest": DIGEST, "other": "b" * 64, "factor": 0.9}

    monkeypatch.setattr(measuring, "records", records)
    spec = load_manifest(manifest.read_text(), folder="/").ensemble.spec
    digests = {"big": DIGEST, "small": "b" * 64}
    points = [Point(size, 0.01 * size**0.5, 1) for size in (1, 8, 16)]
    profiles = table(Profile(digest, "cpu-1", "FP32", tuple(points)) for digest in digests.values())
    plan = make_plan(question(spec, digests, [core_set(0)], profiles))
    assert plan.matrix == ((16, 16),)
    found = measuring.measure_pairs(spec, digests, profiles, plan, ProfileStore(tmp_path, "here"))
    assert [document["batchSizes"] for document in asked] == [{"big": 8, "small": 8}]
    assert found.interference == {("cpu-1", DIGEST, "b" * 64): 0.9}
