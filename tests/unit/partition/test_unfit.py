"""Models, operators and moments that do not fit a plan: what can be served is served, and what cannot is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

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
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition import costs, planning
from ensemble_runtime.partition import model as partitioned
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.model import PartitionedModel, split
from ensemble_runtime.partition.opening import opened, overlapping
from ensemble_runtime.partition.planning import Costs, plan
from ensemble_runtime.partition.rewriting import Rewriting

LATENCY, MEMORY = PartitionObjective.LATENCY, PartitionObjective.MEMORY
Devices = tuple[Device, Device]
HIDDEN, STEPS = 16, 12


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray[Any, Any]], opset: int = 17) -> onnx.ModelProto:
    """From x (rows, STEPS, HIDDEN) to y."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", STEPS, HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def layers(count: int, squeeze: Callable[[str, str], onnx.NodeProto]) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """LSTM layers from t to s and their number."""
    random = np.random.default_rng(0)
    nodes, weights = [helper.make_node("Transpose", ["x"], ["s0"], perm=[1, 0, 2])], {}
    for i in range(count):
        for name in (f"W{i}", f"R{i}"):
            weights[name] = random.normal(size=(1, 4 * HIDDEN, HIDDEN), scale=0.3).astype(np.float32)
        nodes.append(helper.make_node("LSTM", [f"s{i}", f"W{i}", f"R{i}"], [f"y{i}"], hidden_size=HIDDEN))
        nodes.append(squeeze(f"y{i}", f"s{i + 1}"))
    return nodes, weights


def old_stack() -> onnx.ModelProto:
    """Two layers as exporters wrote them in 2018."""
    nodes, weights = layers(2, lambda x, y: helper.make_node("Squeeze", [x], [y], axes=[1]))
    nodes.append(helper.make_node("Transpose", ["s2"], ["y"], perm=[1, 0, 2]))
    return model_of(nodes, weights, opset=8)


def with_a_sequence() -> onnx.ModelProto:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["joined"], axis=1),
        helper.make_node("Tanh", ["joined"], ["y"]),
    ]
    return model_of(nodes, {})


def with_nonzero() -> onnx.ModelProto:
    """The sum of what is positive, found by its places."""
    weights = {"zero": np.array(0, np.float32), "row": np.array([-1]), "axes": np.array([1, 2])}
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["places"]),
        helper.make_node("Transpose", ["places"], ["turned"], perm=[1, 0]),
        helper.make_node("GatherND", ["x", "turned"], ["found"]),
        helper.make_node("ReduceSum", ["found"], ["sum"], keepdims=1),
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["means", "sum"], ["y"]),
    ]
    return model_of(nodes, weights)


def member_of(model: onnx.ModelProto, folder: Path, wanted: Partition) -> tuple[Member, Path]:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    source = ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX)
    return Member(name="m", model=source, partition=wanted), path


INPUTS = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(STEPS, HIDDEN)),)


def tensor_of(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    x = np.zeros((1, STEPS, HIDDEN), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return (TensorSpec(name="y", datatype=Datatype.FP32, shape=session.run(None, {"x": x})[0].shape[1:]),)


@pytest.mark.parametrize("build", [with_a_sequence, with_nonzero])
def test_what_cannot_be_cut_is_served_whole_for_the_least_time_and_why_is_told(
    build: Callable[[], onnx.ModelProto],
    two_cores: Devices,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, outputs = build(), tensor_of(build())
    quick, path = member_of(model, tmp_path, Partition(objective=LATENCY))
    with caplog.at_level(logging.WARNING):
        served = split(quick, path, INPUTS, outputs, two_cores, 2)
    assert isinstance(served, OnnxModel)
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("served whole: cannot be partitioned: "), told
    for rows in (2, 1):
        x = np.random.default_rng(rows).normal(size=(rows, STEPS, HIDDEN)).astype(np.float32)
        assert served.predict([x])[0].shape[0] == rows
    small, path = member_of(model, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    with pytest.raises(ModelInvalidError, match="member 'm': cannot be partitioned"):
        split(small, path, INPUTS, outputs, two_cores, 2)


def test_a_size_that_the_data_tell_is_named(two_cores: Devices) -> None:
    graph = parse(with_nonzero(), {"x": (2, STEPS, HIDDEN)})
    with pytest.raises(ModelInvalidError, match="how large 'places' is, which NonZero puts out, depends on the data"):
        plan(graph, Partition(objective=LATENCY), Costs(two_cores), chart=False)


def test_a_range_up_to_what_is_read_varies_and_one_up_to_a_shape_does_not(two_cores: Devices) -> None:
    weights = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "first": np.array(1)}

    def ranging(nodes: list[onnx.NodeProto]) -> Graph:
        after = [
            helper.make_node("Range", ["zero", "end", "one"], ["steps"]),
            helper.make_node("ReduceSum", ["steps"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "real"], ["y"]),
        ]
        return parse(model_of([*nodes, *after], weights), {"x": (2, STEPS, HIDDEN)})

    shaped = ranging(
        [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "first"], ["end"])]
    )
    plan(shaped, Partition(objective=LATENCY), Costs(two_cores), chart=False)
    read = ranging(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["end"], to=TensorProto.INT64),
        ]
    )
    with pytest.raises(ModelInvalidError, match="'steps' is, which Range puts out"):
        plan(read, Partition(objective=LATENCY), Costs(two_cores), chart=False)


def test_an_old_stack_is_planned_and_gives_the_same_numbers(two_cores: Devices, tmp_path: Path) -> None:
    """Its layers cannot be cut in time, for zeros of a computed shape came with opset 9; they can alternate."""
    model = old_stack()
    planned = plan(parse(model, {"x": (2, STEPS, HIDDEN)}), Partition(objective=LATENCY), Costs(two_cores), chart=False)
    assert planned.choice.opened.steps is None
    member, path = member_of(model, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    served = split(member, path, INPUTS, tensor_of(model), two_cores, 2)
    assert isinstance(served, PartitionedModel)
    try:
        x = np.random.default_rng(0).normal(size=(2, STEPS, HIDDEN)).astype(np.float32)
        alone = OnnxModel(member, path, INPUTS, tensor_of(model), two_cores[0])
        np.testing.assert_allclose(served.predict([x])[0], alone.predict([x])[0], rtol=1e-5, atol=1e-6)
    finally:
        served.close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Have a device compute no operator of a type, as a CPU computes no LSTM in half precision."""

    def refuse(op_type: str, name: str) -> None:
        real = costs.open_session

        def opened(model: str, device: Device, stream: int | None = None) -> Any:
            if device.name == name and any(x.op_type == op_type for x in onnx.load(model).graph.node):
                raise ModelInvalidError("cannot be computed in parts: NOT_IMPLEMENTED")
            return real(model, device, stream)

        monkeypatch.setattr(costs, "open_session", opened)

    return refuse


def test_an_operator_that_one_device_does_not_compute_is_placed_on_the_other(
    recurrent_models: ModuleType, two_cores: Devices, refused: Callable[[str, str], None]
) -> None:
    graph = parse(recurrent_models.stacked("LSTM", HIDDEN, 2, STEPS), {"x": (1, STEPS, HIDDEN)})
    refused("LSTM", two_cores[1].name)
    for wanted in (Partition(objective=LATENCY), Partition(objective=MEMORY, latency_ms=60_000)):
        planned = plan(graph, wanted, Costs(two_cores), chart=False)
        placed = planned.choice.placement.device
        recurrent = [x.name for x in planned.choice.opened.graph.operators if x.op_type == "LSTM"]
        assert recurrent and {placed[name] for name in recurrent} == {0}
        assert planned.baselines[0] is not None and planned.baselines[1] is None
    refused("LSTM", two_cores[0].name)
    with pytest.raises(ModelInvalidError, match="no finite time on either device"):
        plan(graph, wanted, Costs(two_cores), chart=False)


def test_a_way_of_opening_that_fails_is_left_out(
    recurrent_models: ModuleType,
    two_cores: Devices,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = parse(recurrent_models.stacked("LSTM", HIDDEN, 2, 24), {"x": (1, 24, HIDDEN)})
    real = Costs.of

    def of(self: Costs, graph: Graph, steps: int | None) -> planning.Opened:
        if steps == 12:
            raise ModelInvalidError("shapes cannot be inferred")
        return real(self, graph, steps)

    monkeypatch.setattr(Costs, "of", of)
    with caplog.at_level(logging.WARNING):
        planned = plan(graph, Partition(objective=LATENCY), Costs(two_cores), chart=False)
    assert planned.choice.opened.steps in (None, 6)
    assert ["12 time steps: shapes cannot be inferred" in x.getMessage() for x in caplog.records] == [True]


def test_parts_that_cannot_be_opened_are_left_out_for_the_least_time(
    two_cores: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime may refuse together what it computes apart."""

    def refusing(*_: object) -> None:
        raise ModelInvalidError("cannot be computed in parts: NOT_IMPLEMENTED")

    monkeypatch.setattr(partitioned, "Executor", refusing)
    model = old_stack()
    member, path = member_of(model, tmp_path, Partition(objective=LATENCY))
    with caplog.at_level(logging.WARNING):
        served = split(member, path, INPUTS, tensor_of(model), two_cores, 2)
    assert isinstance(served, OnnxModel)
    assert "a partition is left out: cannot be computed in parts" in caplog.text


def test_cuts_of_one_tensor_at_different_places_are_different_tensors(small_stack: Graph) -> None:
    rewriting = Rewriting(small_stack)
    halves, thirds = rewriting.cut("x", 1, (0, 8, 16)), rewriting.cut("x", 1, (0, 6, 16))
    assert not set(halves.names) & set(thirds.names)
    assert rewriting.cut("x", 1, (0, 6, 16)) == thirds and rewriting.cut("x", 1, (0, 8, 16)) == halves
    assert len(rewriting.nodes) == 2


def test_an_output_that_nothing_computes_is_told() -> None:
    model = model_of([helper.make_node("Tanh", ["x"], ["z"])], {"y": np.ones((1, 2), np.float32)})
    with pytest.raises(ModelInvalidError, match="output 'y' is a constant"):
        parse(model, {"x": (2, STEPS, HIDDEN)})


@pytest.mark.parametrize("places", [np.array([1, 30]), np.array([[0, 1], [1, 14]])])
def test_a_sparse_weight_is_a_weight(two_cores: Devices, places: np.ndarray[Any, Any]) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {})
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), ""), [HIDDEN, HIDDEN])
    model.graph.sparse_initializer.append(sparse)
    graph = parse(model, {"x": (2, STEPS, HIDDEN)})
    assert graph.weights == {"w": 4 * HIDDEN * HIDDEN}
    (weight,) = (numpy_helper.to_array(x) for x in graph.model.graph.initializer)
    assert (weight[0, 1], weight[1, 14], np.count_nonzero(weight)) == (2, 3, 2)
    assert plan(graph, Partition(objective=LATENCY), Costs(two_cores), chart=False).choice.schedule.makespan > 0


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_older_stack_is_cut_into_chunks_that_give_the_same_numbers(opset: int) -> None:
    """Axes and sizes are attributes there, and a softmax joins all axes from its own on."""
    nodes, weights = layers(2, lambda x, y: helper.make_node("Squeeze", [x], [y], axes=[1]))
    between = [
        helper.make_node("Softmax", ["s1"], ["soft"], axis=2),
        helper.make_node("Unsqueeze", ["soft"], ["wide"], axes=[0]),
        helper.make_node("Squeeze", ["wide"], ["narrow"], axes=[0]),
    ]
    nodes[3].input[0] = "narrow"
    after = [helper.make_node("Transpose", ["s2"], ["y"], perm=[1, 0, 2])]
    model = model_of([*nodes[:3], *between, *nodes[3:], *after], weights, opset)
    graph = parse(model, {"x": (3, STEPS, HIDDEN)})
    changed = opened(graph, overlapping(graph, 5))
    assert sum(x.op_type == "LSTM" for x in changed.operators) == 6
    assert sum(x.op_type == "Softmax" for x in changed.operators) == 3
    x = np.random.default_rng(0).normal(size=(3, STEPS, HIDDEN)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
        for m in (model, changed.model)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
