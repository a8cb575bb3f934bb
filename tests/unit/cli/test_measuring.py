from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.cli import measuring
from ensemble_operator.inventory.device import Device
from ensemble_operator.profiles.store import ProfileStore
from ensemble_operator.profiles.table import Want
from ensemble_runtime.config import DeviceKind

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
    for table in (found, store.load([(DIGEST, "cpu-1", "FP32")])):
        profile = table.get(DIGEST, "cpu-1", "FP32")
        assert profile and [point.seconds for point in profile.points] == [0.1, 0.2]
