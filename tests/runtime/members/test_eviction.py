"""The model cache stays within its size, and nothing goes that somebody uses."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_runtime.config import ModelFormat, ModelSource
from ensemble_runtime.members.eviction import trim
from ensemble_runtime.members.storage import FetchedModel, fetch

SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetched(cache: Path, number: int, used: float | None = None) -> FetchedModel:
    """A model of SIZE bytes, by way of fsspec; `used` backdates its last use."""
    content = number.to_bytes(2, "big") * (SIZE // 2)
    name = f"model-{number}"
    fsspec.filesystem("memory").pipe(f"/{name}", content)
    source = ModelSource(uri=f"memory://{name}", format=ModelFormat.ONNX, sha256=hashlib.sha256(content).hexdigest())
    model = fetch(source, cache)
    if used is not None:
        os.utime(model.path, (used, used))
    return model


def released(model: FetchedModel) -> Path:
    assert model.lease is not None
    model.lease.close()
    return model.path


def test_what_was_used_longest_ago_goes_first(cache: Path) -> None:
    paths = [released(fetched(cache, i, used=1000.0 + (i * 7) % 5)) for i in range(5)]
    assert trim(cache, 2 * SIZE) == 2 * SIZE
    by_age = sorted(range(5), key=lambda i: (i * 7) % 5)
    assert {i for i, path in enumerate(paths) if path.exists()} == set(by_age[-2:])


def test_a_fetch_counts_as_a_use(cache: Path) -> None:
    old, new = (released(fetched(cache, i, used=1000.0 + i)) for i in range(2))
    released(fetched(cache, 0))
    trim(cache, SIZE)
    assert old.exists() and not new.exists()


def test_what_somebody_uses_stays_even_where_the_rest_does_not_fit(cache: Path) -> None:
    held = [fetched(cache, i, used=1000.0) for i in range(3)]
    spare = released(fetched(cache, 3))
    assert trim(cache, SIZE) == 3 * SIZE
    assert all(model.path.exists() for model in held) and not spare.exists()


def hold(cache: Path, ready: Event, end: Event) -> None:
    model = fetched(cache, 0)
    ready.set()
    end.wait(60)
    assert model.lease is not None


def test_another_process_holds_what_it_uses_until_it_ends(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(cache, ready, end))
    process.start()
    assert ready.wait(60)
    assert trim(cache, 0) == SIZE
    process.kill()  # the kernel gives up its lease
    process.join(60)
    assert trim(cache, 0) == 0


def test_what_a_killed_fetch_left_behind_goes(cache: Path) -> None:
    cache.mkdir()
    dead = cache / "fetch-dead"
    dead.write_bytes(b"x" * SIZE)
    assert trim(cache, 0) == 0
    assert not dead.exists()


def test_an_evicted_model_is_fetched_again(cache: Path) -> None:
    first = released(fetched(cache, 0))
    trim(cache, 0)
    assert not first.exists()
    assert fetched(cache, 0).path == first and first.stat().st_size == SIZE


def test_a_cache_that_is_not_there_takes_nothing(cache: Path) -> None:
    assert trim(cache, 0) == 0 and not cache.exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    models=st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=8, unique_by=lambda model: model[0]),
    limit=st.integers(0, 10),
)
def test_the_rest_fits_or_is_in_use(tmp_path_factory: pytest.TempPathFactory, models: list, limit: int) -> None:
    cache = tmp_path_factory.mktemp("cache")
    kept = [fetched(cache, number) for number, _ in models]
    for model, (_, used) in zip(kept, models, strict=True):
        if not used:
            released(model)
    left = trim(cache, limit * SIZE)
    in_use = sum(used for _, used in models)
    assert left == SIZE * sum(model.path.exists() for model in kept)
    assert left <= max(limit, in_use) * SIZE
    assert left >= min(limit, len(models)) * SIZE  # and no more went than had to
    assert all(model.path.exists() for model, (_, used) in zip(kept, models, strict=True) if used)
    for model in kept:
        if model.lease is not None:
            model.lease.close()
