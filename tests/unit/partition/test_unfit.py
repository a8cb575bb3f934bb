"""Models, operators and moments that do not fit a plan: what can be served is served, and what cannot is told."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
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
    DeviceKind,
    Member,
    ModelFormat,
    ModelSource,
    Partition,
    PartitionObjective,
    TensorSpec,
)
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition import answer, costs, planning
from ensemble_runtime.partition import model as partitioned
from ensemble_runtime.partition.answer import PartitionRequest, partition
from ensemble_runtime.partition.costs import Measured
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.model import PartitionedModel, load_partitioned, split
from ensemble_runtime.partition.planning import Choice, Costs, again, plan
from ensemble_runtime.partition.rewriting import Rewriting
from ensemble_runtime.partition.schedule import NoScheduleError, least_bytes, least_makespan
from ensemble_runtime.partition.second import PROCESS_BYTES
from ensemble_runtime.partition.simulation import SimulatedGpu

LATENCY, MEMORY = PartitionObjective.LATENCY, PartitionObjective.MEMORY
Devices = tuple[Device, Device]
HIDDEN, STEPS = 16, 12


def _models() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "recurrent_models.py"
    spec = importlib.util.spec_from_file_location("recurrent_models", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


MODELS = _models()


@pytest.fixture(scope="module")
def devices() -> Devices:
    """Two sets of one core; the same one where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    one, other = (
        Device(name=f"cpu{i}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=(core,))
        for i, core in enumerate((cores[0], cores[-1]))
    )
    return one, other


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
    devices: Devices,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, outputs = build(), tensor_of(build())
    quick, path = member_of(model, tmp_path, Partition(objective=LATENCY))
    with caplog.at_level(logging.WARNING):
        served = split(quick, path, INPUTS, outputs, devices, 2)
    assert isinstance(served, OnnxModel)
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("served whole: cannot be partitioned: "), told
    for rows in (2, 1):
        x = np.random.default_rng(rows).normal(size=(rows, STEPS, HIDDEN)).astype(np.float32)
        assert served.predict([x])[0].shape[0] == rows
    small, path = member_of(model, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    with pytest.raises(ModelInvalidError, match="member 'm': cannot be partitioned"):
        split(small, path, INPUTS, outputs, devices, 2)


def test_a_size_that_the_data_tell_is_named(devices: Devices) -> None:
    graph = parse(with_nonzero(), {"x": (2, STEPS, HIDDEN)})
    with pytest.raises(ModelInvalidError, match="how large 'places' is, which NonZero puts out, depends on the data"):
        plan(graph, Partition(objective=LATENCY), Costs(devices), chart=False)


def test_a_range_up_to_what_is_read_varies_and_one_up_to_a_shape_does_not(devices: Devices) -> None:
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
    plan(shaped, Partition(objective=LATENCY), Costs(devices), chart=False)
    read = ranging(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["end"], to=TensorProto.INT64),
        ]
    )
    with pytest.raises(ModelInvalidError, match="'steps' is, which Range puts out"):
        plan(read, Partition(objective=LATENCY), Costs(devices), chart=False)


def test_an_old_stack_is_planned_and_gives_the_same_numbers(devices: Devices, tmp_path: Path) -> None:
    """Its layers cannot be cut in time, for zeros of a computed shape came with opset 9; they can alternate."""
    model = old_stack()
    planned = plan(parse(model, {"x": (2, STEPS, HIDDEN)}), Partition(objective=LATENCY), Costs(devices), chart=False)
    assert planned.choice.opened.steps is None
    member, path = member_of(model, tmp_path, Partition(objective=MEMORY, latency_ms=60_000))
    served = split(member, path, INPUTS, tensor_of(model), devices, 2)
    assert isinstance(served, PartitionedModel)
    try:
        x = np.random.default_rng(0).normal(size=(2, STEPS, HIDDEN)).astype(np.float32)
        alone = OnnxModel(member, path, INPUTS, tensor_of(model), devices[0])
        np.testing.assert_allclose(served.predict([x])[0], alone.predict([x])[0], rtol=1e-5, atol=1e-6)
    finally:
        served.close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Have a device compute no operator of a type, as a CPU computes no LSTM in half precision."""

    def refuse(op_type: str, name: str) -> None:
        real = costs.open_session

        def opened(model: bytes, device: Device) -> Any:
            if device.name == name and any(x.op_type == op_type for x in onnx.load_from_string(model).graph.node):
                raise ModelInvalidError("cannot be computed in parts: NOT_IMPLEMENTED")
            return real(model, device)

        monkeypatch.setattr(costs, "open_session", opened)

    return refuse


def test_an_operator_that_one_device_does_not_compute_is_placed_on_the_other(
    devices: Devices, refused: Callable[[str, str], None]
) -> None:
    graph = parse(MODELS.stacked("LSTM", HIDDEN, 2, STEPS), {"x": (1, STEPS, HIDDEN)})
    refused("LSTM", devices[1].name)
    for wanted in (Partition(objective=LATENCY), Partition(objective=MEMORY, latency_ms=60_000)):
        planned = plan(graph, wanted, Costs(devices), chart=False)
        placed = planned.choice.placement.device
        recurrent = [x.name for x in planned.choice.opened.graph.operators if x.op_type == "LSTM"]
        assert recurrent and {placed[name] for name in recurrent} == {0}
        assert planned.baselines[0] is not None and planned.baselines[1] is None
    refused("LSTM", devices[0].name)
    with pytest.raises(ModelInvalidError, match="no finite time on either device"):
        plan(graph, wanted, Costs(devices), chart=False)


def test_a_way_of_opening_that_fails_is_left_out(
    devices: Devices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = parse(MODELS.stacked("LSTM", HIDDEN, 2, 24), {"x": (1, 24, HIDDEN)})
    real = Costs.of

    def of(self: Costs, graph: Graph, steps: int | None) -> planning.Opened:
        if steps == 12:
            raise ModelInvalidError("shapes cannot be inferred")
        return real(self, graph, steps)

    monkeypatch.setattr(Costs, "of", of)
    with caplog.at_level(logging.WARNING):
        planned = plan(graph, Partition(objective=LATENCY), Costs(devices), chart=False)
    assert planned.choice.opened.steps in (None, 6)
    assert ["12 time steps: shapes cannot be inferred" in x.getMessage() for x in caplog.records] == [True]


def test_parts_that_cannot_be_opened_are_left_out_for_the_least_time(
    devices: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime may refuse together what it computes apart."""

    def refusing(*_: object) -> None:
        raise ModelInvalidError("cannot be computed in parts: NOT_IMPLEMENTED")

    monkeypatch.setattr(partitioned, "Executor", refusing)
    model = old_stack()
    member, path = member_of(model, tmp_path, Partition(objective=LATENCY))
    with caplog.at_level(logging.WARNING):
        served = split(member, path, INPUTS, tensor_of(model), devices, 2)
    assert isinstance(served, OnnxModel)
    assert "a partition is left out: cannot be computed in parts" in caplog.text


@pytest.fixture
def stack() -> Graph:
    return parse(MODELS.stacked("LSTM", 64, 2, 16), {"x": (1, 16, 64)})


def scaled(choice: Choice, factor: float) -> Choice:
    """The same as if everything took so many times as long."""
    problem = choice.schedule.instance
    tasks = tuple(replace(task, seconds=tuple(s and s * factor for s in task.seconds)) for task in problem.tasks)
    links = tuple(replace(link, latency=link.latency * factor) for link in problem.links)
    return Choice(choice.opened, replace(choice.schedule, instance=replace(problem, tasks=tasks, links=links)))


def slower(monkeypatch: pytest.MonkeyPatch, factor: float) -> list[float]:
    """Have every split take longer in place than it was predicted to; gives the predictions as they are asked about."""
    asked: list[float] = []

    def in_place(self: Costs, choice: Choice) -> Choice:
        asked.append(choice.schedule.makespan)
        return scaled(choice, factor) if choice.split else choice

    monkeypatch.setattr(Costs, "in_place", in_place)
    return asked


def test_where_the_fewest_bytes_turn_out_too_slow_a_few_more_are_taken(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fill the time that is permitted; 5 % over it, one layer more stays, not all of them."""
    gpu = Device(name="gpu0", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**30)
    costs = Costs((gpu, devices[1]), SimulatedGpu(speedup=4, launch_us=0, latency_us=1))
    graph = parse(MODELS.stacked("LSTM", 64, 4, 16), {"x": (1, 16, 64)})
    seconds = {x.name: 1e-3 if x.op_type == "LSTM" else 1e-6 for x in graph.operators}
    monkeypatch.setattr(planning, "measured", lambda *_: (Measured(seconds, seconds),))
    way = costs.of(graph, None)
    monkeypatch.setattr(planning, "ways_to_open", lambda _: [None])
    whole = way.alone.scarce_bytes((0,) * len(way.groups))
    fast = least_makespan(way.busy).makespan
    exact = least_bytes(way.busy, 2.5 * fast)
    assert 0 < exact.scarce_bytes < whole
    wanted = Partition(objective=MEMORY, latency_ms=1000 * exact.makespan * (1 + 1e-9))
    asked = slower(monkeypatch, 1.05)
    found = plan(graph, wanted, costs, chart=False).choice
    assert found.schedule.makespan <= exact.makespan
    assert exact.scarce_bytes < found.schedule.scarce_bytes < 0.9 * whole
    assert len(asked) <= 1 + planning.LOWER


def test_what_was_planned_comes_up_again_beside_neighbours_that_compute(
    stack: Graph, devices: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = Partition(objective=MEMORY, latency_ms=1e-3)  # as if all had become slower than that
    with pytest.raises(NoScheduleError):
        plan(stack, wanted, Costs(devices), chart=False)
    weights = sum(stack.weights.values())
    with caplog.at_level(logging.WARNING):
        free = again(stack, wanted, Costs(devices))
        bound = again(stack, wanted, Costs(devices), booked=weights // 2)
        nothing = again(stack, wanted, Costs(devices), booked=0)
    assert free.placement.device
    assert bound.schedule.scarce_bytes <= weights // 2 and nothing.schedule.scarce_bytes == 0
    assert len(caplog.records) == 3 and "latencyMs permits 0.001" in caplog.records[0].getMessage()


def test_a_split_takes_no_more_of_the_scarce_device_than_is_booked(
    stack: Graph, devices: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = again(stack, Partition(objective=LATENCY), Costs(devices), booked=1000)
    assert found.schedule.scarce_bytes <= 1000
    assert "1000 are booked" in caplog.text


def request_of(folder: Path, devices: Devices, wanted: Partition) -> PartitionRequest:
    onnx.save(MODELS.stacked("LSTM", 64, 2, 16), str(folder / "model.onnx"))
    source = ModelSource(uri=(folder / "model.onnx").as_uri(), format=ModelFormat.ONNX)
    member = Member(name="m", model=source, partition=wanted)
    return PartitionRequest(member=member, devices=devices, chart=False)


def test_threads_may_keep_a_latency_that_no_split_keeps(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "executed", lambda *_: 0.011)
    monkeypatch.setattr(answer, "threaded", lambda *_: 1e-6)
    request = request_of(tmp_path, devices, Partition(objective=LATENCY, latency_ms=0.002))
    (record,) = partition(request, tmp_path)
    assert record["seconds"] == 1e-6 and record["latencyMs"] == 0.002
    monkeypatch.setattr(answer, "threaded", lambda *_: 0.008)
    with pytest.raises(NoScheduleError, match=r"when it is run, latencyMs permits 0\.002"):
        list(partition(request, tmp_path))


def test_a_split_that_takes_longer_when_it_is_run_is_not_offered(
    tmp_path: Path, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the fewest bytes less is aimed at, until what is run is quick enough."""
    aims: list[float] = []
    real, limit = answer.plan, 0.010

    def full(graph: Graph, wanted: Partition, costs: Costs, *, chart: bool) -> planning.Planned:
        """A plan that fills what is permitted."""
        assert wanted.latency_ms is not None
        aims.append(wanted.latency_ms / 1000)
        found = real(graph, Partition(objective=LATENCY), costs, chart=chart)
        return replace(found, choice=scaled(found.choice, aims[-1] / found.choice.schedule.makespan))

    monkeypatch.setattr(answer, "plan", full)
    monkeypatch.setattr(answer, "executed", lambda *_: next(took))
    monkeypatch.setattr(Choice, "beside", property(lambda _: True))
    monkeypatch.setattr(Costs, "in_place", lambda _, choice: choice)
    request = request_of(tmp_path, devices, Partition(objective=MEMORY, latency_ms=1000 * limit))
    took = iter([1.2 * limit, 0.9 * limit])
    (record,) = partition(request, tmp_path)
    assert record["seconds"] == 0.9 * limit and record["latencyMs"] == 1000 * limit
    assert aims == pytest.approx([limit, limit / 1.2])

    took = iter([1.2 * limit, 1.1 * limit, 1.05 * limit, 1.04 * limit])
    with pytest.raises(NoScheduleError, match=r"a batch takes 10\.4 ms when it is run, latencyMs permits 10"):
        list(partition(request, tmp_path))


def test_a_model_that_is_all_on_the_second_device_has_a_process_there(tmp_path: Path, devices: Devices) -> None:
    (record,) = partition(request_of(tmp_path, devices, Partition(objective=MEMORY, latency_ms=60_000)), tmp_path)
    assert set(record["placement"]["device"].values()) == {1} and record["memoryBytes"] == 0
    assert record["secondBytes"] == record["choice"]["otherBytes"] + PROCESS_BYTES
    assert record["seconds"] == record["measuredMs"] / 1000, "what one device tells the other is in it"


def test_a_member_that_is_slower_than_its_latency_serves_and_says_so(
    devices: Devices, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = old_stack()
    member, path = member_of(model, tmp_path, Partition(objective=LATENCY, latency_ms=1e-3))
    with caplog.at_level(logging.WARNING):
        served = load_partitioned(member, path, INPUTS, tensor_of(model), devices, 2)
    if isinstance(served, PartitionedModel):
        served.close()
    assert "latencyMs permits 0.001" in caplog.text


def test_cuts_of_one_tensor_at_different_places_are_different_tensors(stack: Graph) -> None:
    rewriting = Rewriting(stack)
    halves, thirds = rewriting.cut("x", 1, (0, 8, 16)), rewriting.cut("x", 1, (0, 6, 16))
    assert not set(halves.names) & set(thirds.names)
    assert rewriting.cut("x", 1, (0, 6, 16)) == thirds and rewriting.cut("x", 1, (0, 8, 16)) == halves
    assert len(rewriting.nodes) == 2


def test_an_output_that_nothing_computes_is_told() -> None:
    model = model_of([helper.make_node("Tanh", ["x"], ["z"])], {"y": np.ones((1, 2), np.float32)})
    with pytest.raises(ModelInvalidError, match="output 'y' is a constant"):
        parse(model, {"x": (2, STEPS, HIDDEN)})


@pytest.mark.parametrize("places", [np.array([1, 30]), np.array([[0, 1], [1, 14]])])
def test_a_sparse_weight_is_a_weight(devices: Devices, places: np.ndarray[Any, Any]) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {})
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), ""), [HIDDEN, HIDDEN])
    model.graph.sparse_initializer.append(sparse)
    graph = parse(model, {"x": (2, STEPS, HIDDEN)})
    assert graph.weights == {"w": 4 * HIDDEN * HIDDEN}
    (weight,) = (numpy_helper.to_array(x) for x in graph.model.graph.initializer)
    assert (weight[0, 1], weight[1, 14], np.count_nonzero(weight)) == (2, 3, 2)
    assert plan(graph, Partition(objective=LATENCY), Costs(devices), chart=False).choice.schedule.makespan > 0
