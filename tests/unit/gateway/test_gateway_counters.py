"""What is counted adds up, and reads as Prometheus and Triton's clients expect."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.gateway import documents
from ensemble_runtime.gateway.exposition import exposition, process_usage
from ensemble_runtime.gateway.metrics import BOUNDS_SECONDS, Counters
from ensemble_runtime.gateway.refusal import Reason
from ensemble_runtime.pipeline.port import CellStatus, Health, ShadowStatus

CELL = CellStatus("gpu-0", "a", 4, "Ready", os.getpid(), 1, 10, 30, 0.5, 2, "GPU-1 at 0000:01:00.0")
HEALTH = Health(True, "", (CELL,), {"gateway": os.getpid()}, {"a": 3})


@given(st.lists(st.tuples(st.integers(1, 100), st.lists(st.integers(0, 10**10), min_size=2, max_size=2)), max_size=20))
def test_times_add_up_and_every_request_is_in_one_bucket(requests: list[tuple[int, list[int]]]) -> None:
    counters = Counters(["a"])
    for rows, times in requests:
        submitted, finished = sorted(times)
        counters.success(rows, 0, submitted, finished)
    assert counters.succeeded == len(requests) == sum(counters.buckets)
    assert counters.rows == sum(rows for rows, _ in requests)
    assert counters.request_ns == counters.receive_ns + counters.pipeline_ns + counters.encode_ns
    assert len(counters.buckets) == len(BOUNDS_SECONDS) + 1


def test_failures_are_told_apart() -> None:
    counters = Counters(["a", "b"])
    assert counters.last_inference_ms() == 0
    counters.failure(Reason.REJECTED, 0)
    counters.lacked({"b": "slow"})
    assert counters.failed == dict.fromkeys(Reason, 0) | {Reason.REJECTED: 1}
    assert counters.missing == {"a": 0, "b": 1}
    assert counters.failed_ns > 0 and counters.last_inference_ms() > 0


def test_shadows_are_told_by_what_they_can_be_told_by(configure: Callable[..., RuntimeConfig]) -> None:
    shadows = (ShadowStatus("new", 40, 38.5, None), ShadowStatus("newer", 7, None, 0.25))

    class Pipeline:
        config = configure()
        in_flight = 0

        def health(self) -> Health:
            return replace(HEALTH, shadows=shadows)

    lines = exposition(Pipeline(), Counters(["a"])).decode().splitlines()  # type: ignore[arg-type]
    told = [line.replace(',model="digits",version="3"', "") for line in lines if line.startswith("ensemble_shadow")]
    assert told == [
        'ensemble_shadow_rows_total{member="new"} 40.0',
        'ensemble_shadow_rows_total{member="newer"} 7.0',
        'ensemble_shadow_agreeing_rows_total{member="new"} 38.5',
        'ensemble_shadow_distance_total{member="newer"} 0.25',
    ]


def test_the_documents_describe_the_ensemble(configure: Callable[..., RuntimeConfig]) -> None:
    config = configure([{"name": "x", "datatype": "INT8", "shape": [-1, 2]}])
    metadata = documents.model_metadata(config)
    assert metadata["inputs"] == [{"name": "x", "datatype": "INT8", "shape": [-1, -1, 2]}]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("digits", ["3"], "ensemble")
    words = documents.model_config(config, 64)
    assert words["input"] == [{"name": "x", "data_type": "TYPE_INT8", "dims": [-1, 2]}]
    assert words["max_batch_size"] == 64
    assert words["instance_group"][0] == {"name": "a@gpu-0", "kind": "KIND_GPU", "count": 1}


def test_the_index_leaves_out_what_is_not_ready_on_request(configure: Callable[..., RuntimeConfig]) -> None:
    broken = Health(False, "no worker for a", (), {}, {})
    assert documents.repository_index(configure(), broken, only_ready=True) == []
    (entry,) = documents.repository_index(configure(), broken, only_ready=False)
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "no worker for a")


def test_statistics_hold_the_cells_counters(configure: Callable[..., RuntimeConfig]) -> None:
    (stats,) = documents.statistics(configure(), Counters(["a"]), HEALTH)["model_stats"]
    (cell,) = stats["cells"]
    assert (cell["name"], cell["execution_count"], cell["inference_count"]) == ("a@gpu-0", 10, 30)
    assert cell["compute_infer"] == {"count": 10, "ns": 500_000_000}


def test_the_usage_of_a_process_is_its_own_and_none_when_it_is_gone() -> None:
    usage = process_usage(os.getpid())
    assert usage is not None
    resident, seconds = usage
    assert 1 << 20 < resident < 1 << 40
    assert seconds == pytest.approx(sum(os.times()[:2]), abs=1.0)
    assert process_usage(2**30) is None
