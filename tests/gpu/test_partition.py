"""One recurrent member over a GPU and a core: the way over CUDA, on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from spreading import BUILDS, backend_cases, batches, spread, with_weights

from ensemble_runtime.config import Device, PartitionObjective
from ensemble_runtime.errors import OutOfMemoryError
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.agreement import disagreement, drawn, tolerated
from ensemble_runtime.partition.costs import measured
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Placement, parse
from ensemble_runtime.partition.handover import links
from ensemble_runtime.partition.model import PartitionedModel, load_partitioned, split
from ensemble_runtime.partition.opening import alternating, opened, openings
from ensemble_runtime.partition.trial import Proposal

MEMORY = PartitionObjective.MEMORY
Whole = Callable[[onnx.ModelProto], onnxruntime.InferenceSession]


@pytest.fixture
def devices(gpu: Device, core: Device) -> tuple[Device, Device]:
    return gpu, core


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("steps", [0, 5])
def test_every_batch_is_computed_on_its_own_rows(
    recurrent_models: ModuleType, whole: Whole, devices: tuple[Device, Device], kind: str, build: str, steps: int
) -> None:
    model = BUILDS[build](recurrent_models, kind)
    features = 9 if build == "odd" else 24
    graph = parse(model, {"x": (3, 12, features)})
    changed = opened(graph, dict.fromkeys(openings(graph), steps))
    alone = whole(model)
    for seed in range(2):
        with closing(Executor(changed, spread(changed, seed), devices)) as both:
            for x in batches(8, (3, 3, 1), 12, features):
                (found,) = both.compute([x])
                np.testing.assert_allclose(found, alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_lengths_are_read_on_the_host(devices: tuple[Device, Device], whole: Whole) -> None:
    """The lengths of the rows, made by either device, and read by an LSTM on the GPU and by the core."""
    chance = np.random.default_rng(0)
    weights = {name: chance.normal(size=(1, 16, 4)).astype(np.float32) for name in "WR"}
    for lengths_from in (0, 1):
        nodes = [
            helper.make_node("Abs", ["given"], ["lengths"], name="lengths"),
            helper.make_node("LSTM", ["x", "W", "R", "", "lengths"], ["all"], name="lstm", hidden_size=4),
            helper.make_node("Abs", ["lengths"], ["again"], name="again"),
        ]
        integers = helper.make_tensor_value_info("given", TensorProto.INT32, ["rows"])
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "lengths",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, "rows", 4]), integers],
                [
                    helper.make_tensor_value_info("all", TensorProto.FLOAT, None),
                    helper.make_tensor_value_info("again", TensorProto.INT32, None),
                ],
                [numpy_helper.from_array(value, name) for name, value in weights.items()],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        graph = parse(model, {"x": (5, 3, 4), "given": (3,)})
        placement = Placement({"lengths": lengths_from, "lstm": 0, "again": 1})
        with closing(Executor(graph, placement, devices)) as both:
            for i, x in enumerate(batches(4, (3,), 5, 4)):
                feeds = {"x": x.transpose(1, 0, 2), "given": np.array([5, 1 + i, -2], np.int32)}
                found = both.compute([feeds[name] for name in graph.inputs])
                for answer, right in zip(found, whole(model).run(list(graph.outputs), feeds), strict=True):
                    np.testing.assert_allclose(answer, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("case", backend_cases(), ids=lambda case: case.name)
def test_backend_case(devices: tuple[Device, Device], case: Any, first: int, steps: int) -> None:
    for inputs, outputs in case.data_sets:
        model, feeds = with_weights(case.model, inputs)
        graph = parse(model, {name: value.shape for name, value in feeds.items()})
        changed = opened(graph, dict.fromkeys(openings(graph), steps))
        device = {x.name: (first + i) % 2 for i, x in enumerate(changed.operators)}
        with closing(Executor(changed, Placement(device), devices)) as both:
            found = both.compute([feeds[name] for name in changed.inputs])
        for expected, answer in zip(outputs, found, strict=True):
            np.testing.assert_allclose(answer, expected, rtol=max(case.rtol, 1e-4), atol=max(case.atol, 1e-5))


def test_both_devices_are_measured(recurrent_models: ModuleType, devices: tuple[Device, Device]) -> None:
    graph = parse(recurrent_models.stacked("LSTM", 24, 2, 12), {"x": (2, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 6))
    there, here = measured(changed, devices)
    assert set(there.alone) == set(here.alone) == {x.name for x in changed.operators}
    assert 1e-6 < sum(there.alone.values()) < 1
    to_cores, to_gpu = links(devices)
    assert 0 < to_cores.latency < 0.01 and 0 < to_gpu.latency < 0.01


@pytest.mark.parametrize("objective", list(PartitionObjective))
def test_a_member_is_measured_planned_and_split(
    case: Callable[..., Any], devices: tuple[Device, Device], objective: PartitionObjective
) -> None:
    member, path, inputs, outputs = case(objective=objective, latency_ms=60_000 if objective is MEMORY else None)
    model = split(member, path, inputs, outputs, devices, 4)
    if objective is MEMORY:
        assert isinstance(model, PartitionedModel)
        assert model.held_bytes[0] == 0, "within a minute everything can be left to the core"
    alone = OnnxModel(member, path, inputs, outputs, devices[1])
    for x in batches(4, (4, 1), *inputs[0].shape):
        np.testing.assert_allclose(model.predict([x])[0], alone.predict([x])[0], rtol=1e-4, atol=1e-4)
    if isinstance(model, PartitionedModel):
        model.close()


def test_layers_in_turn_agree_with_the_whole_model(
    case: Callable[..., Any], recurrent_models: ModuleType, devices: tuple[Device, Device]
) -> None:
    member, path, inputs, outputs = case(hidden=256, layers=4, steps=32)
    graph = parse(onnx.load(path), {"x": (4, *inputs[0].shape)})
    changed = opened(graph, dict.fromkeys(openings(graph), 8))
    alone = OnnxModel(member, path, inputs, outputs, devices[0])
    with closing(PartitionedModel(alone, Proposal(changed, alternating(changed), 8), outputs, devices)) as model:
        why = disagreement(model, drawn(alone, inputs, 4), tolerated(member.precision, devices))
        assert why is None
        assert all(model.held_bytes)


def test_a_model_that_its_part_of_the_gpu_has_no_room_for_is_served_in_parts(
    case: Callable[..., Any], devices: tuple[Device, Device]
) -> None:
    """Four layers of 64 MiB, on a GPU as one whole layer takes it twice: weights, and those of cuDNN."""
    member, path, inputs, outputs = case(hidden=1448, layers=4, steps=4, objective=PartitionObjective.LATENCY)
    booked = 3 * 64 * 2**20
    model = load_partitioned(member, path, inputs, outputs, devices, 2, booked)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        assert 2 * model.held_bytes[0] <= booked
        alone = OnnxModel(member, path, inputs, outputs, devices[1])
        for x in batches(2, (2,), *inputs[0].shape):
            np.testing.assert_allclose(model.predict([x])[0], alone.predict([x])[0], rtol=1e-4, atol=1e-4)


def test_lack_of_memory_on_the_gpu_is_told_as_such(
    case: Callable[..., Any], recurrent_models: ModuleType, devices: tuple[Device, Device]
) -> None:
    gpu, core = devices
    small = gpu.model_copy(update={"memory_bytes": 2**20})
    graph = parse(recurrent_models.stacked("LSTM", 256, 2, 8), {"x": (2, 8, 256)})
    with pytest.raises(OutOfMemoryError, match="memory"):
        Executor(graph, Placement({x.name: 0 for x in graph.operators}), (small, core))
