from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ensemble_runtime.config import Device, DeviceKind, Member, ModelFormat, ModelSource, Partition, PartitionObjective
from ensemble_runtime.errors import ManifestError
from ensemble_runtime.partition.answer import PartitionRequest, partition
from ensemble_runtime.partition.costs import instance, measured, workspace
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.handover import links
from ensemble_runtime.partition.instance import Link
from ensemble_runtime.partition.opening import opened, overlapping
from ensemble_runtime.partition.planning import Costs, plan, ways_to_open
from ensemble_runtime.partition.schedule import NoScheduleError
from ensemble_runtime.partition.simulation import SimulatedGpu

LATENCY, MEMORY = PartitionObjective.LATENCY, PartitionObjective.MEMORY


def test_every_operator_has_its_seconds_and_recurrent_ones_the_most(
    small_stack: Graph, two_cores: tuple[Device, Device]
) -> None:
    graph = opened(small_stack, overlapping(small_stack, 4))
    for device in measured(graph, two_cores):
        for seconds in (device.alone, device.busy):
            assert set(seconds) == {operator.name for operator in graph.operators}
            recurrent = sum(seconds[x.name] for x in graph.operators if x.op_type == "LSTM")
            assert 0.5 * sum(seconds.values()) < recurrent < 10
            assert min(seconds.values()) >= 0


def test_weights_count_once_however_many_chunks_share_them(small_stack: Graph) -> None:
    graph = opened(small_stack, overlapping(small_stack, 4))
    seconds = dict.fromkeys((x.name for x in graph.operators), 0.001)
    problem = instance(graph, (seconds, seconds), (Link(0, 0), Link(0, 0)), None)
    weights = sum(small_stack.weights.values())
    everything = problem.scarce_bytes((0,) * len(graph.operators))
    assert weights <= everything < 1.5 * weights
    there = instance(graph, (seconds, seconds), (Link(0, 0), Link(0, 0)), None, on_gpu=True)
    recurrent = {x for o in graph.operators if o.op_type == "LSTM" for x in graph.nodes[o.name].input[1:4]}
    again = sum(graph.weights[x] for x in recurrent)
    assert weights / 2 < again
    assert there.scarce_bytes((0,) * len(graph.operators)) == everything + again, "a GPU has them in a second order"
    assert there.device_bytes((1,) * len(graph.operators), 1) == problem.device_bytes((1,) * len(graph.operators), 1)


def test_gates_of_all_steps_are_workspace(small_stack: Graph) -> None:
    lstm = next(x.name for x in small_stack.operators if x.op_type == "LSTM")
    assert workspace(small_stack, lstm) == 16 * 1 * 64 * 4 * 4
    assert workspace(small_stack, next(x.name for x in small_stack.operators if x.op_type == "MatMul")) == 0


def test_waking_the_other_thread_takes_time_but_not_long(two_cores: tuple[Device, Device]) -> None:
    there, back = links(two_cores)
    assert there == back
    assert 0 < there.latency < 0.1


def test_chunks_divide_the_time_steps_and_nothing_is_opened_that_is_not_recurrent(recurrent_models: ModuleType) -> None:
    stack = parse(recurrent_models.stacked("GRU", 8, 2, 24), {"x": (1, 24, 8)})
    assert ways_to_open(stack) == [None, 12, 6]
    single = parse(recurrent_models.stacked("GRU", 8, 1, 24), {"x": (1, 24, 8)})
    assert ways_to_open(single) == [None]


def test_no_plan_is_worse_than_one_device_by_its_own_prediction(
    small_stack: Graph, two_cores: tuple[Device, Device]
) -> None:
    planned = plan(small_stack, Partition(objective=LATENCY), Costs(two_cores))
    alone = [base.schedule.makespan for base in planned.baselines if base is not None]
    assert planned.choice.schedule.makespan <= min(alone)
    assert {x.name for x in planned.choice.opened.graph.operators} == set(planned.choice.placement.device)
    assert planned.curve[0].schedule.makespan <= planned.choice.schedule.makespan
    assert planned.curve[-1].schedule.scarce_bytes == 0


def test_memory_leaves_a_simulated_gpu_within_the_latency(small_stack: Graph, two_cores: tuple[Device, Device]) -> None:
    gpu = Device(name="gpu0", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**30)
    costs = Costs((gpu, two_cores[1]), SimulatedGpu(speedup=4, launch_us=0, latency_us=1))
    quick = plan(small_stack, Partition(objective=LATENCY), costs, chart=False)
    fast = quick.choice.schedule.makespan * 1000
    (gpu_alone, cpu_alone) = quick.baselines
    assert gpu_alone is not None and cpu_alone is not None
    assert gpu_alone.schedule.makespan < cpu_alone.schedule.makespan / 2
    tight = plan(small_stack, Partition(objective=MEMORY, latency_ms=fast * 2), costs, chart=False)
    assert 0 < tight.choice.schedule.scarce_bytes < gpu_alone.schedule.scarce_bytes
    with pytest.raises(NoScheduleError, match="latencyMs permits"):
        plan(small_stack, Partition(objective=MEMORY, latency_ms=fast / 100), costs, chart=False)


def test_a_simulated_gpu_is_as_fast_as_stated(small_stack: Graph) -> None:
    seconds = {x.name: 0.008 if x.op_type == "LSTM" else 0.0 for x in small_stack.operators}
    there = SimulatedGpu(speedups={"LSTM": 2.0}, launch_us=100).seconds(small_stack, seconds)
    assert sorted(set(there.values())) == pytest.approx([0.0, 0.0041])


def test_a_request_is_answered_in_plain_data(
    tmp_path: Path, two_cores: tuple[Device, Device], recurrent_models: ModuleType
) -> None:
    import onnx

    onnx.save(recurrent_models.stacked("LSTM", 16, 2, 16), tmp_path / "model.onnx")
    source = ModelSource(uri=(tmp_path / "model.onnx").as_uri(), format=ModelFormat.ONNX)
    request = PartitionRequest(member=Member(name="m", model=source), devices=two_cores, batch_sizes=(1, 4))
    records = list(partition(request, tmp_path / "cache"))
    assert [record["batchSize"] for record in records] == [1, 4]
    for record in records:
        names = record["placement"]["order"]
        assert sorted(names) == sorted(record["placement"]["device"])
        assert len(record["bars"]) == record["choice"]["groups"]
        assert record["choice"]["makespanMs"] <= min(base["makespanMs"] for base in record["baselines"])
        one_process = (record["baselines"][0]["makespanMs"], record["threadsMs"])
        chosen = record.get("measuredMs", record["choice"]["makespanMs"])
        assert record["seconds"] * 1000 == pytest.approx(min(chosen, *one_process)), "as it was measured, if it was"
        assert max(bar["endMs"] for bar in record["bars"]) <= record["choice"]["makespanMs"] + 1e-6
    with pytest.raises(ManifestError, match="no input is named z; there are x"):
        next(partition(request.model_copy(update={"shapes": {"z": (1,)}}), tmp_path / "cache"))


def test_batches_that_no_schedule_is_quick_enough_for_are_left_out(
    tmp_path: Path, two_cores: tuple[Device, Device], recurrent_models: ModuleType
) -> None:
    """As a profile does; only where not even the first is quick enough, that is an error."""
    import onnx

    onnx.save(recurrent_models.stacked("LSTM", 16, 2, 16), tmp_path / "model.onnx")
    source = ModelSource(uri=(tmp_path / "model.onnx").as_uri(), format=ModelFormat.ONNX)
    gpu = Device(name="gpu0", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**30)

    def asked(milliseconds: float) -> PartitionRequest:
        wanted = Partition(objective=MEMORY, latency_ms=milliseconds)
        member = Member(name="m", model=source, partition=wanted)
        costs = SimulatedGpu(speedup=1, launch_us=0)
        both = (gpu, two_cores[1])
        return PartitionRequest(member=member, devices=both, batch_sizes=(1, 2048), simulated=costs, chart=False)

    (roomy,) = partition(asked(1e5).model_copy(update={"batch_sizes": (1,)}), tmp_path)
    found = list(partition(asked(10 * roomy["baselines"][1]["makespanMs"]), tmp_path))
    assert [record["batchSize"] for record in found] == [1]
    assert {"deviceType": "gpu:cpu-1", "precision": "FP32"}.items() <= found[0].items()
    with pytest.raises(NoScheduleError):
        list(partition(asked(0.001), tmp_path))


def test_the_second_device_is_a_set_of_cores(
    tmp_path: Path, two_cores: tuple[Device, Device], recurrent_models: ModuleType
) -> None:
    import onnx

    onnx.save(recurrent_models.stacked("LSTM", 16, 1, 4), tmp_path / "model.onnx")
    source = ModelSource(uri=(tmp_path / "model.onnx").as_uri(), format=ModelFormat.ONNX)
    gpu = Device(name="gpu0", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**30)
    request = PartitionRequest(member=Member(name="m", model=source), devices=(two_cores[0], gpu))
    with pytest.raises(ManifestError, match="has to be a set of cores"):
        next(partition(request, tmp_path))
