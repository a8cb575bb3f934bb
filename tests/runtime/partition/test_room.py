"""A model that is larger than its GPU: measured, planned and served without ever taking more than there is.

The GPU is not there (`absent_gpu`); what sessions hold of it is their weights, beside what is allocated.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from absent_gpu import DEVICE, AbsentGpu

from ensemble_runtime.config import (
    Datatype,
    Device,
    Member,
    ModelFormat,
    ModelSource,
    Partition,
    PartitionObjective,
    TensorSpec,
)
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition import answer
from ensemble_runtime.partition import model as partitioned
from ensemble_runtime.partition.answer import PartitionRequest, partition
from ensemble_runtime.partition.costs import measured
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import parse
from ensemble_runtime.partition.model import PartitionedModel, load_partitioned
from ensemble_runtime.partition.planning import LOWER, Choice, Opened
from ensemble_runtime.partition.timeline import Schedule

LATENCY, MEMORY = PartitionObjective.LATENCY, PartitionObjective.MEMORY
HIDDEN, LAYERS, STEPS, ROWS = 64, 3, 8, 2
LAYER_BYTES = 2 * 4 * (8 * HIDDEN * HIDDEN + 8 * HIDDEN)
"""Weights and biases of an LSTM layer, which a GPU holds twice."""
WHOLE_BYTES = LAYERS * LAYER_BYTES + LAYER_BYTES // 4
"""The whole model with its tensors; no layer has room beside it."""


@pytest.fixture
def devices(two_devices: tuple[Device, Device]) -> tuple[Device, Device]:
    return DEVICE, two_devices[1]


Loadable = tuple[Member, Path, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def member_of(models: ModuleType, folder: Path, wanted: Partition) -> Loadable:
    path = folder / "model.onnx"
    onnx.save(models.stacked("LSTM", HIDDEN, LAYERS, STEPS), str(path))
    source = ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX)
    x = TensorSpec(name="x", datatype=Datatype.FP32, shape=(STEPS, HIDDEN))
    y = TensorSpec(name="y", datatype=Datatype.FP32, shape=(models.CLASSES,))
    return Member(name="m", model=source, partition=wanted), path, (x,), (y,)


def check(model: Any, loadable: Loadable, core: Device) -> None:
    """It answers as the whole model does."""
    whole = OnnxModel(*loadable, core)
    for rows in (ROWS, 1):
        x = np.random.default_rng(rows).normal(size=(rows, STEPS, HIDDEN)).astype(np.float32)
        np.testing.assert_allclose(model.predict([x])[0], whole.predict([x])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wanted", [Partition(objective=LATENCY), Partition(objective=MEMORY, latency_ms=60_000)])
def test_a_model_larger_than_the_gpu_is_measured_planned_and_served(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Partition,
) -> None:
    size = 5 * LAYER_BYTES // 4
    gpu.limit(size)
    small, core = devices[0].model_copy(update={"memory_bytes": size}), devices[1]
    monkeypatch.setattr(answer, "bind", lambda _: "")
    monkeypatch.setattr(answer, "_free_bytes", lambda _: size)
    loadable = member_of(recurrent_models, tmp_path, wanted)
    request = PartitionRequest(member=loadable[0], batch_sizes=(ROWS,), inputs=loadable[2], devices=(small, core))
    (record,) = partition(request, tmp_path)
    assert record["memoryBytes"] <= size and record["baselines"][0] is None
    assert all(point["scarceBytes"] <= size for point in record["curve"])
    model = load_partitioned(*loadable, (small, core), ROWS, record["memoryBytes"])
    assert isinstance(model, PartitionedModel) and model.held_bytes[0] <= record["memoryBytes"]
    with closing(model):
        check(model, loadable, core)


@pytest.mark.parametrize("wanted", [Partition(objective=LATENCY), Partition(objective=MEMORY, latency_ms=60_000)])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_cell_takes_no_more_of_a_shared_gpu_than_it_is_booked_for(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    wanted: Partition,
    layers: int,
) -> None:
    """Not even while it is measured: what its neighbours need is not there for it."""
    loadable, booked = member_of(recurrent_models, tmp_path, wanted), layers * LAYER_BYTES * 5 // 4
    model = load_partitioned(*loadable, devices, ROWS, booked)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        assert model.held_bytes[0] <= booked
        check(model, loadable, devices[1])
    assert gpu.most_held <= booked


def test_parts_that_answer_otherwise_leave_the_whole_model_to_the_cores(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partitioned, "disagreement", lambda *_: "it is wrong")
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    model = load_partitioned(*loadable, devices, ROWS, 2 * LAYER_BYTES)
    assert isinstance(model, OnnxModel)
    check(model, loadable, devices[1])
    gc.collect()
    assert gpu.held == 0 and gpu.most_held <= 2 * LAYER_BYTES


def test_what_cores_do_not_compute_whole_is_compared_with_the_gpu(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As LSTMs in half precision."""
    asked: list[str] = []

    def opened(*arguments: Any) -> OnnxModel:
        asked.append(arguments[-1].name)
        if arguments[-1] == devices[1]:
            raise ModelInvalidError("cannot be loaded by ONNX Runtime: NOT_IMPLEMENTED")
        return OnnxModel(*arguments)

    monkeypatch.setattr(partitioned, "OnnxModel", opened)
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    model = load_partitioned(*loadable, devices, ROWS)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        check(model, loadable, devices[1])
    assert asked == [devices[1].name, devices[0].name] and gpu.most_held >= LAYERS * LAYER_BYTES


def test_a_gpu_that_turns_out_to_have_no_room_for_the_whole_computes_a_part(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ONNX Runtime takes beside weights and tensors nobody can tell before."""

    def full(*_: Any) -> Any:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1048576")

    def opened(*arguments: Any) -> OnnxModel:
        found = OnnxModel(*arguments)
        if arguments[-1] == devices[0]:
            monkeypatch.setattr(found, "predict", full)
        return found

    monkeypatch.setattr(partitioned, "OnnxModel", opened)
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=LATENCY))
    monkeypatch.setattr(partitioned, "again", lambda ways, *_: _in_parts(ways[0]))
    model = load_partitioned(*loadable, devices, ROWS)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        check(model, loadable, devices[1])


def _in_parts(way: Opened) -> Choice:
    """Any choice with operators on both devices."""
    split = [*range(len(way.groups))]
    return Choice(way, Schedule(way.busy, tuple(i % 2 for i in split), tuple(split)))


def test_an_operator_that_is_too_large_for_the_gpu_alone_is_the_cores(
    recurrent_models: ModuleType, devices: tuple[Device, Device], gpu: AbsentGpu
) -> None:
    gpu.limit(3 * LAYER_BYTES // 4)
    graph = parse(recurrent_models.stacked("LSTM", HIDDEN, 2, STEPS), {"x": (ROWS, STEPS, HIDDEN)})
    there, here = measured(graph, devices)
    recurrent = {x.name for x in graph.operators if x.op_type == "LSTM"}
    assert set(here.alone) == {x.name for x in graph.operators}
    assert set(there.alone) == set(here.alone) - recurrent


def test_a_member_that_fits_is_tried_whole_and_in_parts_one_after_the_other(
    recurrent_models: ModuleType, devices: tuple[Device, Device], gpu: AbsentGpu, tmp_path: Path
) -> None:
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=LATENCY))
    model = load_partitioned(*loadable, devices, ROWS, WHOLE_BYTES)
    check(model, loadable, devices[1])
    if isinstance(model, PartitionedModel):
        model.close()
    assert LAYERS * LAYER_BYTES <= gpu.most_held <= WHOLE_BYTES


def lost(models: Sequence[Any], rows: Any) -> list[float]:
    """A trial that parts lose."""
    return [1.0 + isinstance(model, PartitionedModel) for model in models]


def crowded(models: Sequence[Any], rows: Any) -> list[float]:
    """A trial for which parts have no room."""
    if any(isinstance(model, PartitionedModel) for model in models):
        raise OutOfMemoryError("there is no room for a batch")
    return [1.0 for _ in models]


@pytest.mark.parametrize(
    ("asked", "answered", "said"),
    [
        ("disagreement", lambda *_: "it is wrong", "answers otherwise"),
        ("on_trial", lost, ""),
        ("on_trial", crowded, "a partition is left out: there is no room for a batch"),
    ],
)
def test_parts_that_do_not_serve_are_off_the_gpu_before_the_whole_model_is_on_it(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: str,
    answered: Callable[..., Any],
    said: str,
) -> None:
    monkeypatch.setattr(partitioned, asked, answered)
    executors: list[weakref.ref[Executor]] = []

    def executor(*arguments: Any) -> Executor:
        made = Executor(*arguments)
        executors.append(weakref.ref(made))
        return made

    def opened(*arguments: Any) -> OnnxModel:
        assert all(made() is None for made in executors), "nobody collects garbage before the GPU is full"
        return OnnxModel(*arguments)

    monkeypatch.setattr(partitioned, "Executor", executor)
    monkeypatch.setattr(partitioned, "OnnxModel", opened)
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=LATENCY))
    gc.disable()
    try:
        model = load_partitioned(*loadable, devices, ROWS, WHOLE_BYTES)
    finally:
        gc.enable()
    assert executors and isinstance(model, OnnxModel)
    assert said in caplog.text
    check(model, loadable, devices[1])
    assert LAYERS * LAYER_BYTES <= gpu.most_held <= WHOLE_BYTES


@pytest.mark.parametrize(("crowded_times", "loads"), [(2, True), (100, False)])
def test_where_memory_runs_out_all_the_same_less_is_planned_with(
    recurrent_models: ModuleType,
    devices: tuple[Device, Device],
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    crowded_times: int,
    loads: bool,
) -> None:
    tries: list[int] = []

    class Crowded(PartitionedModel):
        def __init__(self, *arguments: Any) -> None:
            tries.append(len(tries))
            if len(tries) <= crowded_times:
                raise OutOfMemoryError("there is no room")
            super().__init__(*arguments)

    monkeypatch.setattr(partitioned, "PartitionedModel", Crowded)
    loadable = member_of(recurrent_models, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    if loads:
        model = load_partitioned(*loadable, devices, ROWS, WHOLE_BYTES)
        assert isinstance(model, PartitionedModel)
        with closing(model):
            check(model, loadable, devices[1])
    else:
        with pytest.raises(OutOfMemoryError, match="member 'm': there is no room"):
            load_partitioned(*loadable, devices, ROWS, WHOLE_BYTES)
    assert len(tries) == (3 if loads else 1 + LOWER)
    assert "planned again with less room: there is no room" in caplog.text
