"""Profiles on disk: found again, kept apart by machine, whole under concurrent writers."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import ProfileStore, cpu_model, default_root
from ensemble_operator.profiles.table import key_of
from ensemble_runtime.config import Partition, PartitionObjective

A = "a" * 64
CPU = Profile(A, "cpu-1", "FP32", (Point(1, 0.25, 1000), Point(2, 0.5, 2000)))
GPU = Profile(A, "NVIDIA-A100-SXM4-40GB", "FP16", (Point(1, 0.125, 1000),))


def test_what_is_saved_is_found_by_another_process_later(tmp_path: Path) -> None:
    ProfileStore(tmp_path, "EPYC").save(CPU)
    known = ProfileStore(tmp_path, "EPYC").load([key_of(CPU), key_of(GPU)])
    assert known.get(*key_of(CPU)) == CPU
    assert known.get(*key_of(GPU)) is None


def test_a_split_for_something_else_is_something_else(tmp_path: Path) -> None:
    quick = Partition(objective=PartitionObjective.LATENCY)
    small, smaller = (Partition(objective=PartitionObjective.MEMORY, latency_ms=ms) for ms in (50, 50.5))
    pair = Profile(A, "A100:cpu-1", "FP32", (Point(1, 0.25, 9000, 10),), quick)
    store = ProfileStore(tmp_path, "EPYC")
    for profile in (pair, replace(pair, partition=small, points=(Point(1, 0.5, 1000, 8010),))):
        store.save(profile)
    known = store.load((A, "A100:cpu-1", "FP32", split) for split in (quick, small, smaller, None))
    found = {split: known.get(A, "A100:cpu-1", "FP32", split) for split in (quick, small, smaller)}
    assert [profile and profile.points[0].memory_bytes for profile in found.values()] == [9000, 1000, None]


def test_points_are_added_and_replaced(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path, "EPYC")
    store.save(CPU)
    store.save(Profile(A, "cpu-1", "FP32", (Point(2, 0.75, 3000), Point(4, 1.5, 4000))))
    profile = store.load([key_of(CPU)]).get(*key_of(CPU))
    assert profile is not None
    assert profile.points == (Point(1, 0.25, 1000), Point(2, 0.75, 3000), Point(4, 1.5, 4000))


def test_factors_are_kept_with_the_profile(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path, "EPYC")
    store.save(CPU, {"b" * 64: 0.9, "c" * 64: 1.1})
    store.save(CPU, {"c" * 64: 1.2})
    store.save(CPU)
    factors = ProfileStore(tmp_path, "EPYC").load([key_of(CPU)]).interference
    assert factors == {("cpu-1", CPU.digest, "b" * 64): 0.9, ("cpu-1", CPU.digest, "c" * 64): 1.2}
    assert not ProfileStore(tmp_path, "Xeon").load([key_of(CPU)]).interference


def test_cores_of_another_cpu_are_another_thing_and_gpus_are_not(tmp_path: Path) -> None:
    ProfileStore(tmp_path, "EPYC 7763").save(CPU)
    ProfileStore(tmp_path, "EPYC 7763").save(GPU)
    elsewhere = ProfileStore(tmp_path, "Xeon(R) w/ 8 cores").load([key_of(CPU), key_of(GPU)])
    assert elsewhere.get(*key_of(CPU)) is None
    assert elsewhere.get(*key_of(GPU)) == GPU


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": "a"}', b"\xff"])
def test_a_damaged_file_is_as_none_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store = ProfileStore(tmp_path, "EPYC")
    store.save(CPU)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert store.load([key_of(CPU)]).get(*key_of(CPU)) is None
    assert str(path) in caplog.text
    store.save(CPU)
    assert store.load([key_of(CPU)]).get(*key_of(CPU)) == CPU


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    def save(size: int) -> None:
        ProfileStore(tmp_path, "EPYC").save(Profile(A, "cpu-1", "FP32", (Point(size, 1.0, size),)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(1, 33)))
    profile = ProfileStore(tmp_path, "EPYC").load([key_of(CPU)]).get(*key_of(CPU))
    assert profile is not None
    assert [point.batch_size for point in profile.points] == list(range(1, 33))
    assert not list(tmp_path.rglob(".new-*"))


def test_types_that_are_not_file_names_stay_apart(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path, "EPYC")
    for seconds, device_type in enumerate(["a/b", "a%2Fb", "../a"], start=1):
        store.save(Profile(A, device_type, "FP32", (Point(1, float(seconds), 1),)))
    found = store.load([(A, t, "FP32", None) for t in ("a/b", "a%2Fb", "../a")])
    assert [p.points[0].seconds for p in found.profiles.values()] == [1.0, 2.0, 3.0]
    assert {path.parent.name for path in tmp_path.rglob("*.json")} == {A}


def test_the_cpu_says_what_it_is(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    core = "processor : %d\ncpu family : 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763 64-Core Processor\nstepping: 2\n"
    info.write_text(core % 0 + core % 1)
    assert cpu_model(info) == "AMD EPYC 7763 64-Core Processor (25-1-2)"
    assert cpu_model(tmp_path / "none") != ""


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_root() == Path("/elsewhere/ensembles/profiles")
