"""What is measured counts for `latencyMs`; and what is planned comes up, also where everything is slower by then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import onnx
import pytest

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
from ensemble_runtime.errors import EnsembleError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.partition import answer, planning
from ensemble_runtime.partition.answer import PartitionRequest, partition
from ensemble_runtime.partition.costs import Measured
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.held import Held
from ensemble_runtime.partition.model import PartitionedModel, load_partitioned
from ensemble_runtime.partition.planning import Choice, Costs, Opened, again, plan, ways
from ensemble_runtime.partition.schedule import NoScheduleError, least_bytes, least_makespan
from ensemble_runtime.partition.second import PROCESS_BYTES
from ensemble_runtime.partition.simulation import SimulatedGpu

LATENCY, MEMORY = PartitionObjective.LATENCY, PartitionObjective.MEMORY
Devices = tuple[Device, Device]
HIDDEN, STEPS = 16, 12


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


def beside_a_gpu(models: ModuleType, two_cores: Devices, patch: pytest.MonkeyPatch) -> tuple[Graph, Costs, Opened]:
    """Four layers, and a simulated GPU on which each takes a quarter of a millisecond."""
    gpu = Device(name="gpu0", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**30)
    costs = Costs((gpu, two_cores[1]), SimulatedGpu(speedup=4, launch_us=0, latency_us=1))
    graph = parse(models.stacked("LSTM", 64, 4, 16), {"x": (1, 16, 64)})
    seconds = {x.name: 1e-3 if x.op_type == "LSTM" else 1e-6 for x in graph.operators}
    patch.setattr(planning, "measured", lambda *_: (Measured(seconds, seconds),))
    patch.setattr(planning, "ways_to_open", lambda _: [None])
    return graph, costs, costs.of(graph, None)


def test_where_the_fewest_bytes_turn_out_too_slow_a_few_more_are_taken(
    recurrent_models: ModuleType, two_cores: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fill the time that is permitted; 5 % over it, one layer more stays, not all of them."""
    graph, costs, way = beside_a_gpu(recurrent_models, two_cores, monkeypatch)
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
    small_stack: Graph, two_cores: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = Partition(objective=MEMORY, latency_ms=1e-3)  # as if all had become slower than that
    with pytest.raises(NoScheduleError):
        plan(small_stack, wanted, Costs(two_cores), chart=False)
    weights = sum(small_stack.weights.values())
    with caplog.at_level(logging.WARNING):
        measured = ways(small_stack, Costs(two_cores))
        free = again(measured, wanted, Costs(two_cores))
        bound = again(measured, wanted, Costs(two_cores, booked=weights // 2))
        nothing = again(measured, wanted, Costs(two_cores, booked=0))
    assert free.placement.device
    assert bound.schedule.scarce_bytes <= weights // 2 and nothing.schedule.scarce_bytes == 0
    assert len(caplog.records) == 3 and "latencyMs permits 0.001" in caplog.records[0].getMessage()


def test_a_split_takes_no_more_of_the_scarce_device_than_is_booked(small_stack: Graph, two_cores: Devices) -> None:
    """Neither in a cell nor in a plan; what then is the quickest was so within those bytes."""
    costs = Costs(two_cores, booked=sum(small_stack.weights.values()) // 2)
    for found in (
        again(ways(small_stack, costs), Partition(objective=LATENCY), costs),
        plan(small_stack, Partition(objective=LATENCY), costs, chart=False).choice,
    ):
        assert found.schedule.scarce_bytes <= costs.room
        assert found.beside
    planned = plan(small_stack, Partition(objective=LATENCY), costs)
    assert planned.baselines[0] is None and planned.baselines[1] is not None
    assert all(costs.fit(point) for point in planned.curve)


def test_less_is_planned_with_where_memory_has_run_out(
    recurrent_models: ModuleType, two_cores: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is not all that sessions take; also where nothing that takes less is as quick as wanted."""
    _, costs, way = beside_a_gpu(recurrent_models, two_cores, monkeypatch)
    sizes = []
    for _ in range(3):
        choice = again([way], Partition(objective=MEMORY, latency_ms=1e-3), costs)
        sizes.append(choice.schedule.scarce_bytes)
        costs.lower(choice)
    assert all(a > b > 0 for a, b in pairwise(sizes))


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell is loaded to see what it takes."""
    monkeypatch.setattr(answer, "held", lambda _: Held(0, 0))


def request_of(graph: Graph, folder: Path, two_cores: Devices, wanted: Partition) -> PartitionRequest:
    onnx.save(graph.model, str(folder / "model.onnx"))
    source = ModelSource(uri=(folder / "model.onnx").as_uri(), format=ModelFormat.ONNX)
    member = Member(name="m", model=source, partition=wanted)
    return PartitionRequest(member=member, devices=two_cores, chart=False)


@pytest.mark.usefixtures("nothing_held")
def test_threads_may_keep_a_latency_that_no_split_keeps(
    small_stack: Graph, tmp_path: Path, two_cores: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "executed", lambda *_: 0.011)
    monkeypatch.setattr(answer, "threaded", lambda *_: 1e-6)
    request = request_of(small_stack, tmp_path, two_cores, Partition(objective=LATENCY, latency_ms=0.002))
    (record,) = partition(request, tmp_path)
    assert record["seconds"] == 1e-6 and record["latencyMs"] == 0.002
    monkeypatch.setattr(answer, "threaded", lambda *_: 0.008)
    with pytest.raises(NoScheduleError, match=r"when it is run, latencyMs permits 0\.002"):
        list(partition(request, tmp_path))


@pytest.mark.usefixtures("nothing_held")
def test_a_split_that_takes_longer_when_it_is_run_is_not_offered(
    small_stack: Graph, tmp_path: Path, two_cores: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the fewest bytes less is aimed at, until what is run is quick enough; all by what was measured once."""
    aims: list[float] = []
    measured: list[Graph] = []
    real, real_ways, limit = answer.chosen, answer.ways, 0.010

    def ways(graph: Graph, costs: Costs) -> list[Opened]:
        measured.append(graph)
        return real_ways(graph, costs)

    def full(ways: list[Opened], wanted: Partition, costs: Costs, *, chart: bool) -> planning.Planned:
        """A plan that fills what is permitted."""
        assert wanted.latency_ms is not None
        aims.append(wanted.latency_ms / 1000)
        found = real(ways, Partition(objective=LATENCY), costs, chart=chart)
        return replace(found, choice=scaled(found.choice, aims[-1] / found.choice.schedule.makespan))

    monkeypatch.setattr(answer, "chosen", full)
    monkeypatch.setattr(answer, "ways", ways)
    monkeypatch.setattr(answer, "executed", lambda *_: next(took))
    monkeypatch.setattr(Choice, "beside", property(lambda _: True))
    monkeypatch.setattr(Costs, "in_place", lambda _, choice: choice)
    request = request_of(small_stack, tmp_path, two_cores, Partition(objective=MEMORY, latency_ms=1000 * limit))
    took = iter([1.2 * limit, 0.9 * limit])
    (record,) = partition(request, tmp_path)
    assert record["seconds"] == 0.9 * limit and record["latencyMs"] == 1000 * limit
    assert aims == pytest.approx([limit, limit / 1.2]) and len(measured) == 1

    took = iter([1.2 * limit, 1.1 * limit, 1.05 * limit, 1.04 * limit])
    with pytest.raises(NoScheduleError, match=r"a batch takes 10\.4 ms when it is run, latencyMs permits 10"):
        list(partition(request, tmp_path))


def failing(error: EnsembleError, times: int) -> Callable[..., float]:
    """What is run fails so often."""
    left = [error] * times

    def executed(*_: object) -> float:
        if left:
            raise left.pop()
        return 1e-9

    return executed


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize("times", [1, 1 + planning.LOWER])
def test_what_finds_no_room_when_it_is_run_is_planned_again_with_less(
    small_stack: Graph, tmp_path: Path, two_cores: Devices, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    rooms: list[float] = []
    real = answer.chosen

    def chosen(ways: list[Opened], wanted: Partition, costs: Costs, *, chart: bool) -> planning.Planned:
        rooms.append(costs.room)
        return real(ways, wanted, costs, chart=chart)

    monkeypatch.setattr(answer, "chosen", chosen)
    monkeypatch.setattr(answer, "threaded", lambda *_: 1.0)
    monkeypatch.setattr(answer, "executed", failing(OutOfMemoryError("there is no room"), times))
    monkeypatch.setattr(Choice, "beside", property(lambda _: True))
    request = request_of(small_stack, tmp_path, two_cores, Partition(objective=LATENCY))
    if times == 1:
        (record,) = partition(request, tmp_path)
        assert record["seconds"] == 1e-9 and record["memoryBytes"] <= rooms[1] < sum(small_stack.weights.values())
    else:
        with pytest.raises(OutOfMemoryError, match="there is no room"):
            list(partition(request, tmp_path))
    assert len(rooms) == min(1 + times, 1 + planning.LOWER)


@pytest.mark.usefixtures("nothing_held")
def test_what_fails_when_it_is_run_is_not_offered(
    small_stack: Graph, tmp_path: Path, two_cores: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "threaded", lambda *_: 1.0)
    monkeypatch.setattr(answer, "executed", failing(ModelInvalidError("it fails"), 1))
    monkeypatch.setattr(Choice, "beside", property(lambda _: True))
    (record,) = partition(request_of(small_stack, tmp_path, two_cores, Partition(objective=LATENCY)), tmp_path)
    assert set(record["placement"]["device"].values()) == {0} and "measuredMs" not in record


@pytest.mark.usefixtures("nothing_held")
def test_a_model_that_is_all_on_the_second_device_has_a_process_there(
    small_stack: Graph, tmp_path: Path, two_cores: Devices
) -> None:
    (record,) = partition(
        request_of(small_stack, tmp_path, two_cores, Partition(objective=MEMORY, latency_ms=60_000)), tmp_path
    )
    assert set(record["placement"]["device"].values()) == {1} and record["memoryBytes"] == 0
    assert record["secondBytes"] == record["choice"]["otherBytes"] + PROCESS_BYTES
    assert record["seconds"] == record["measuredMs"] / 1000, "what one device tells the other is in it"


def test_a_member_that_is_slower_than_its_latency_serves_and_says_so(
    small_stack: Graph, tmp_path: Path, two_cores: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = Partition(objective=LATENCY, latency_ms=1e-3)
    member = request_of(small_stack, tmp_path, two_cores, wanted).member
    inputs = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(16, 64)),)
    outputs = (TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,)),)
    with caplog.at_level(logging.WARNING):
        served = load_partitioned(member, tmp_path / "model.onnx", inputs, outputs, two_cores, 2)
    if isinstance(served, PartitionedModel):
        served.close()
    assert "latencyMs permits 0.001" in caplog.text
