"""A GPU and a core: every batch is computed on its own rows, and what crosses between them crosses once.

The GPU is not there (`absent_gpu`); the core has its process.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from absent_gpu import DEVICE, LATE, AbsentGpu, Session, twice, until
from onnx import TensorProto, helper, numpy_helper
from spreading import BUILDS, batches, spread

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
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition import gpu as on_gpu
from ensemble_runtime.partition.agreement import disagreement, drawn, tolerated
from ensemble_runtime.partition.costs import measured
from ensemble_runtime.partition.crossings import crossings
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Placement, parse
from ensemble_runtime.partition.handover import links
from ensemble_runtime.partition.memory import Span
from ensemble_runtime.partition.model import PartitionedModel, split
from ensemble_runtime.partition.opening import alternating, opened, openings
from ensemble_runtime.partition.runs import Run
from ensemble_runtime.partition.sessions import call
from ensemble_runtime.partition.trial import Proposal

Devices = tuple[Device, Device]


@pytest.fixture
def devices(gpu: AbsentGpu, two_devices: Devices) -> Devices:
    return DEVICE, two_devices[1]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("steps", [0, 5])
def test_every_batch_is_computed_on_its_own_rows(
    recurrent_models: ModuleType, whole: Any, gpu: AbsentGpu, devices: Devices, kind: str, build: str, steps: int
) -> None:
    model = BUILDS[build](recurrent_models, kind)
    features = 9 if build == "odd" else 24
    graph = parse(model, {"x": (3, 12, features)})
    changed = opened(graph, dict.fromkeys(openings(graph), steps))
    alone = whole(model)
    for seed in range(2):
        with closing(Executor(changed, spread(changed, seed), devices)) as both:
            for x in batches(6, (3, 3, 1), 12, features):
                gpu.clear()
                (found,) = both.compute([x])
                np.testing.assert_allclose(found, alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
                assert twice(gpu.up) == twice(gpu.down) == 0


def test_a_stack_hands_over_the_chunks_of_a_layer_and_nothing_else(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu
) -> None:
    """The input goes up in one piece, each chunk of the lower layer comes down; states stay on the GPU."""
    graph = parse(recurrent_models.stacked("LSTM", 24, 2, 12), {"x": (2, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 3))
    row = 2 * 24 * 4
    with closing(Executor(changed, alternating(changed), devices)) as both:
        for i, x in enumerate(batches(3, (2,), 12, 24)):
            gpu.clear()
            both.compute([x])
            ups = [size for _, size in gpu.up]
            assert ups.count(12 * row) == 1
            assert len(ups) == 1 or i == 0, "what never changes went up with the first batch"
            assert [size for _, size in gpu.down] == [3 * row] * 4


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_chunks_of_odd_sizes_begin_where_kernels_want_them(
    recurrent_models: ModuleType, whole: Any, devices: Devices, gpu: AbsentGpu, kind: str
) -> None:
    """A step of one row has 36 bytes here: what lies close together on the host has places of its own on the GPU."""
    model = recurrent_models.stacked(kind, 9, 3, 12)
    graph = parse(model, {"x": (1, 12, 9)})
    changed = opened(graph, dict.fromkeys(openings(graph), 5))
    alone = whole(model)
    with closing(Executor(changed, alternating(changed), devices)) as both:
        for x in batches(4, (1, 2), 12, 9):
            gpu.clear()
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
            assert twice(gpu.up) == twice(gpu.down) == 0
    assert not gpu.odd


def test_another_number_of_rows_takes_no_more_of_the_gpu_than_what_never_changes(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu, whole: Any
) -> None:
    model = recurrent_models.stacked("LSTM", 24, 2, 12)
    graph = parse(model, {"x": (4, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 3))
    alone = whole(model)
    with closing(Executor(changed, alternating(changed), devices)) as both:
        for i, x in enumerate(batches(8, (4, 1, 3, 2), 12, 24)):
            before = gpu.held
            gpu.clear()
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
            if i:
                assert gpu.held - before == sum(size for _, size in gpu.up) - x.nbytes


def test_what_both_read_comes_down_once_and_what_two_runs_read_goes_up_once(
    devices: Devices, whole: Any, gpu: AbsentGpu
) -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"], name="first"),  # the GPU's, read by both
        helper.make_node("Neg", ["a"], ["b"], name="core"),
        helper.make_node("Relu", ["b"], ["c"], name="one"),  # two runs of the GPU read what the core has made
        helper.make_node("Abs", ["c"], ["d"], name="core again"),
        helper.make_node("Add", ["b", "d"], ["e"], name="two"),
        helper.make_node("Add", ["a", "e"], ["y"], name="last"),
    ]
    graph = parse(_model(nodes, {"x": ["rows", 4]}, ["y"]), {"x": (3, 4)})
    device = {x.name: int("core" in x.name) for x in graph.operators}
    alone = whole(graph.model)
    with closing(Executor(graph, Placement(device), devices)) as both:
        for x in batches(4, (3,), 4):
            gpu.clear()
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-6)
            assert len(gpu.up) == 3, "x, b and d"
            assert len(gpu.down) == 3, "a, c and y"
            assert twice(gpu.up) == twice(gpu.down) == 0


def test_what_goes_up_does_so_as_soon_as_it_is_known_to_be_there() -> None:
    """Inputs when the batch begins; what the core has made with the first gate behind it, whoever waits for that."""
    runs = [
        Run(1, ("core",), ("x",), ("a",)),
        Run(1, ("core again",), ("x",), ("b",), feeds=True),
        Run(0, ("first",), ("b", "z"), ("c",), waits=1),
        Run(1, ("and again",), ("c",), ("d",), waits=2, feeds=True),
        Run(0, ("second",), ("c", "z", "w"), ("e",)),
        Run(0, ("last",), ("a", "d", "e"), ("y",), waits=3),
    ]
    a, b, c, d, w, y, z = (Span(name, 0, 64) for name in "abcdwyz")
    found = crossings(runs, lambda name: Span(name, 0, 64), {2: (), 4: (), 5: ()}, given="xzw", taken="y")
    assert (found.up, found.begin) == ((z, w, b, a, d), 2)
    first, second, last = found.visits[2], found.visits[4], found.visits[5]
    assert (first.before, first.needs, first.behind, first.down) == (3, 3, 4, (c,))
    assert (second.before, second.needs, second.behind, second.down) == (4, 0, 4, ())
    assert (last.before, last.needs, last.behind, last.down) == (5, 5, 5, (y,))


@pytest.mark.parametrize(("offset", "fits"), [(64, True), (36, False)])
def test_a_part_that_begins_oddly_within_what_is_read_as_a_whole_is_not_for_a_gpu(offset: int, fits: bool) -> None:
    spans = {
        "x": Span("x", 0, 128),
        "part": Span("all", offset, 128),
        "whole": Span("all", 0, 128),
        "y": Span("y", 0, 128),
    }
    runs = [
        Run(1, ("core",), ("x",), ("whole",), feeds=True),
        Run(0, ("gpu",), ("part", "whole"), ("y",), waits=0),
    ]
    if fits:
        assert crossings(runs, spans.__getitem__, {1: ()}, given=(), taken="y").places[0] == spans["whole"]
    else:
        with pytest.raises(ModelInvalidError, match="part of 'all' begins where no kernel"):
            crossings(runs, spans.__getitem__, {1: ()}, given=(), taken="y")


def test_parts_of_one_buffer_that_both_devices_write(devices: Devices, whole: Any, gpu: AbsentGpu) -> None:
    """A join along the first axis is no copy: of its bytes only the core's go up, and only the GPU's come down."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"], name="gpu left"),
        helper.make_node("Neg", ["x"], ["b"], name="core"),
        helper.make_node("Abs", ["x"], ["c"], name="gpu right"),
        helper.make_node("Concat", ["a", "b", "c"], ["all"], axis=0, name="join"),
        helper.make_node("Exp", ["all"], ["y"], name="gpu reads"),
        helper.make_node("Softplus", ["all"], ["z"], name="core reads"),
    ]
    graph = parse(_model(nodes, {"x": ["rows", 4]}, ["y", "z"]), {"x": (3, 4)})
    device = {x.name: int("core" in x.name) for x in graph.operators}
    alone = whole(graph.model)
    with closing(Executor(graph, Placement(device), devices)) as both:
        for x in batches(4, (3,), 4):
            gpu.clear()
            for found, right in zip(both.compute([x]), alone.run(["y", "z"], {"x": x}), strict=True):
                np.testing.assert_allclose(found, right, rtol=1e-5)
            assert sorted(size for _, size in gpu.up) == [x.nbytes, x.nbytes], "x, and the core's part"
            assert sorted(size for _, size in gpu.down) == [x.nbytes, x.nbytes, 3 * x.nbytes], "both parts, and y"


@pytest.mark.parametrize("lengths_from", [0, 1])
def test_what_an_operator_reads_on_the_host_is_as_new(devices: Devices, whole: Any, lengths_from: int) -> None:
    """The lengths of the rows, made by either device, and read by an LSTM on the GPU and by the core."""
    chance = np.random.default_rng(0)
    weights = {name: chance.normal(size=(1, 16, 4)).astype(np.float32) for name in "WR"}
    nodes = [
        helper.make_node("Abs", ["given"], ["lengths"], name="lengths"),
        helper.make_node("LSTM", ["x", "W", "R", "", "lengths"], ["all"], name="lstm", hidden_size=4),
        helper.make_node("Abs", ["lengths"], ["again"], name="again"),
    ]
    shapes = {"x": [5, "rows", 4], "given": ["rows"]}
    model = _model(nodes, shapes, ["all", "again"], weights, integers=("given", "again"))
    graph = parse(model, {"x": (5, 3, 4), "given": (3,)})
    placement = Placement({"lengths": lengths_from, "lstm": 0, "again": 1})
    with closing(Executor(graph, placement, devices)) as both:
        for i, x in enumerate(batches(4, (3,), 5, 4)):
            feeds = {"x": x.transpose(1, 0, 2), "given": np.array([5, 1 + i, -2], np.int32)}
            found = both.compute([feeds[name] for name in graph.inputs])
            for answer, right in zip(found, whole(model).run(list(graph.outputs), feeds), strict=True):
                np.testing.assert_allclose(answer, right, rtol=1e-5, atol=1e-6)


def test_costs_hold_no_copy_for_links_have_them(recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu) -> None:
    graph = parse(recurrent_models.stacked("LSTM", 24, 2, 12), {"x": (2, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 6))
    there, here = measured(changed, devices)
    assert set(there.alone) == set(here.alone) == {x.name for x in changed.operators}
    times = Counter(gpu.up).values()
    assert 0 < max(times) <= 2, "what goes up does so before anything is timed, operators apart and together"
    assert not gpu.down
    assert 10 * gpu.awaited < gpu.queued, "runs are timed as they are served: one queued behind the other"
    assert sum(there.alone.values()) > 4 * LATE, "two chunks of two layers, each of which computes late"
    to_cores, to_gpu = links(devices)
    assert to_cores.latency > 0 and to_gpu.latency > 0


def test_a_member_is_split_over_a_gpu_and_a_core(
    recurrent_models: ModuleType, devices: Devices, tmp_path: Path
) -> None:
    """Measured, planned, compared with the whole model, served."""
    wanted = Partition(objective=PartitionObjective.MEMORY, latency_ms=60_000)
    member, path, inputs, outputs = _member(recurrent_models, tmp_path, wanted)
    model = split(member, path, inputs, outputs, devices, 2)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        alone = OnnxModel(member, path, inputs, outputs, devices[1])
        for x in batches(2, (2,), 16, 16):
            np.testing.assert_allclose(model.predict([x])[0], alone.predict([x])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copies", [True, False])
def test_a_gpu_that_keeps_what_it_saw_first_does_not_agree(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu, tmp_path: Path, copies: bool
) -> None:
    member, path, inputs, outputs = _member(recurrent_models, tmp_path)
    graph = parse(onnx.load(path), {"x": (2, 16, 16)})
    changed = opened(graph, dict.fromkeys(openings(graph), 4))
    alone = OnnxModel(member, path, inputs, outputs, devices[0])
    with closing(PartitionedModel(alone, Proposal(changed, alternating(changed), 4), outputs, devices)) as model:
        model.predict([np.ones((2, 16, 16), np.float32)])
        gpu.stub.stub_let_copies_up(copies)
        why = disagreement(model, drawn(alone, inputs, 2), tolerated(member.precision, devices))
    assert (why is None) == copies


def test_a_member_is_served_whole_where_an_old_onnx_runtime_does_not_tell_where_it_reads(
    recurrent_models: ModuleType, devices: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.delattr(Session, "get_input_memory_infos")
    member, path, inputs, outputs = _member(recurrent_models, tmp_path)
    assert isinstance(split(member, path, inputs, outputs, devices, 2), OnnxModel)
    assert "onnxruntime-gpu 1.27" in caplog.text


@pytest.mark.parametrize("refuses", [None, RuntimeError("CUDA failure 35: driver version is insufficient")])
def test_an_onnx_runtime_that_cannot_start_cuda_is_told_and_nothing_is_computed_elsewhere(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu, tmp_path: Path, refuses: Exception | None
) -> None:
    """It would go on without the GPU, and write to the GPU's addresses as if they were the host's."""
    gpu.starts, gpu.refuses = False, refuses
    graph = parse(recurrent_models.stacked("LSTM", 8, 2, 8), {"x": (2, 8, 8)})
    with pytest.raises(DeviceUnavailableError, match="gpu0: ONNX Runtime cannot start CUDA here"):
        Executor(graph, alternating(graph), devices)
    with pytest.raises(DeviceUnavailableError, match="gpu0: ONNX Runtime cannot start CUDA here"):
        OnnxModel(*_member(recurrent_models, tmp_path), devices[0])


def test_a_gpu_without_room_for_anything_is_told_as_such(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu, tmp_path: Path
) -> None:
    gpu.limit(64)
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        links(devices)


def test_lack_of_memory_on_the_gpu_is_told_as_such(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu
) -> None:
    graph = parse(recurrent_models.stacked("LSTM", 8, 2, 8), {"x": (2, 8, 8)})
    with closing(Executor(graph, alternating(graph), devices)) as both:
        gpu.limit(gpu.held)
        with pytest.raises(OutOfMemoryError, match="bound to a GPU"):
            both.compute([np.ones((2, 8, 8), np.float32)])


def test_runs_are_queued_while_the_gpu_computes_and_none_is_awaited(
    devices: Devices, whole: Any, gpu: AbsentGpu
) -> None:
    """The GPU is held up: all of its runs but the last, for which the core has to do something, come to its queue."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="core"),
        helper.make_node("Abs", ["a"], ["c"], name="second"),
        helper.make_node("Add", ["b", "c"], ["y"], name="last"),
    ]
    graph = parse(_model(nodes, {"x": ["rows", 4]}, ["y"]), {"x": (3, 4)})
    x = next(batches(1, (3,), 4))
    with closing(Executor(graph, Placement({x.name: int(x.name == "core") for x in graph.operators}), devices)) as both:
        both.compute([x])  # binds
        queued, ups = gpu.queued, len(gpu.up)
        with ThreadPoolExecutor(1) as thread, gpu.held_up():
            answer = thread.submit(both.compute, [-x])
            until(lambda: gpu.queued == queued + 2)
            until(lambda: len(gpu.up) == ups + 1)
            assert not answer.done()
            gpu.let_go()
            np.testing.assert_allclose(answer.result(60)[0], whole(graph.model).run(None, {"x": -x})[0], rtol=1e-6)
    assert gpu.queued == queued + 3
    assert not gpu.awaited


@pytest.mark.parametrize("at_once", [False, True])
def test_what_recurrent_runs_leave_in_onnx_runtime_is_given_back_in_time(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then, and before a session is closed, also where runs fail (`gpu` sees to that in the end)."""
    graph = parse(recurrent_models.stacked("LSTM", 8, 2, 8), {"x": (2, 8, 8)})
    changed = opened(graph, dict.fromkeys(openings(graph), 2))
    gpu.at_once = at_once
    monkeypatch.setattr(on_gpu, "_SETTLED", 16)
    with closing(Executor(changed, alternating(changed), devices)) as both:
        for x in batches(50, (2, 1), 8, 8):
            both.compute([x])
    assert 4 * 10 < gpu.left < 4 * 20
    if at_once:
        gpu.fails = True
        with closing(Executor(changed, alternating(changed), devices)) as both, pytest.raises(RuntimeError):
            both.compute([np.ones((2, 8, 8), np.float32)])


def test_a_run_of_which_the_host_computes_a_part_is_awaited(devices: Devices, whole: Any, gpu: AbsentGpu) -> None:
    gpu.host_only = {"Softplus"}
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="core"),
        helper.make_node("Softplus", ["b"], ["y"], name="last"),
    ]
    graph = parse(_model(nodes, {"x": ["rows", 4]}, ["y"]), {"x": (3, 4)})
    with closing(Executor(graph, Placement({x.name: int(x.name == "core") for x in graph.operators}), devices)) as both:
        for x in batches(3, (3,), 4):
            np.testing.assert_allclose(both.compute([x])[0], whole(graph.model).run(None, {"x": x})[0], rtol=1e-5)
    assert (gpu.queued, gpu.awaited) == (6, 3)


def test_no_run_begins_before_the_host_has_done_its_part_of_the_one_before(
    devices: Devices, whole: Any, gpu: AbsentGpu
) -> None:
    """Of the same session, which has one place for what the host makes (`gpu` sees to it)."""
    gpu.host_only = {"Softplus"}
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="core"),
        helper.make_node("Softplus", ["a"], ["b"], name="first"),
        helper.make_node("Abs", ["x"], ["c"], name="core too"),
        helper.make_node("Softplus", ["c"], ["d"], name="second"),
        helper.make_node("Concat", ["b", "d"], ["y"], name="core last", axis=1),
    ]
    graph = parse(_model(nodes, {"x": ["rows", 4]}, ["y"]), {"x": (3, 4)})
    order = tuple(node.name for node in nodes)
    placement = Placement({name: int("core" in name) for name in order}, order)
    with closing(Executor(graph, placement, devices)) as both:
        for x in batches(3, (3,), 4):
            np.testing.assert_allclose(both.compute([x])[0], whole(graph.model).run(None, {"x": x})[0], rtol=1e-5)
    assert gpu.queued == 6


@pytest.mark.parametrize("permitted", [True, False])
def test_what_crosses_is_pinned_where_the_driver_permits_it(
    recurrent_models: ModuleType, whole: Any, devices: Devices, gpu: AbsentGpu, caplog: Any, permitted: bool
) -> None:
    gpu.stub.stub_let_pin(permitted)
    model = recurrent_models.stacked("GRU", 24, 2, 12)
    graph = parse(model, {"x": (3, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 5))
    with closing(Executor(changed, alternating(changed), devices)) as both:
        for x in batches(2, (3, 1), 12, 24):
            both.compute([x])  # what never changes goes up first
        gpu.clear()
        for x in batches(2, (3, 1), 12, 24):
            np.testing.assert_allclose(both.compute([x])[0], whole(model).run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
        assert list(gpu.crossed) and all(x.pinned == permitted for x in gpu.crossed)
    assert ("cannot be pinned: cuMemHostRegister_v2: CUDA_ERROR_NOT_PERMITTED" in caplog.text) != permitted
    del both
    assert not gpu.pinned, "whoever has the memory next may pin it"


def test_one_thread_opens_and_others_compute(recurrent_models: ModuleType, devices: Devices, whole: Any) -> None:
    """Each has to say which device it uses, and so has the one that gives the memory back."""
    model = recurrent_models.stacked("GRU", 24, 2, 12)
    graph = parse(model, {"x": (3, 12, 24)})
    with ThreadPoolExecutor(1) as opening, ThreadPoolExecutor(1) as computing:
        both = opening.submit(Executor, graph, alternating(graph), devices).result()
        with closing(both):
            for x in batches(3, (1, 3), 12, 24):
                (found,) = computing.submit(both.compute, [x]).result()
                np.testing.assert_allclose(found, whole(model).run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_a_gpu_that_is_lost_ends_the_process_and_the_core_gets_through(
    recurrent_models: ModuleType, devices: Devices, gpu: AbsentGpu
) -> None:
    """Every call to CUDA would fail from now on; a new process begins anew."""
    graph = parse(recurrent_models.stacked("LSTM", 24, 3, 12), {"x": (2, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), 3))
    x = np.ones((2, 12, 24), np.float32)
    with closing(Executor(changed, alternating(changed), devices)) as both:
        both.compute([x])
        gpu.lose()
        for _ in range(2):
            with pytest.raises(SystemExit, match=r"the GPU is lost: .*CUDA_ERROR_ILLEGAL_ADDRESS"):
                both.compute([x])


@pytest.mark.parametrize("fails_on", [0, 1])
def test_a_failure_ends_the_batch_and_not_the_executor(devices: Devices, gpu: AbsentGpu, fails_on: int) -> None:
    gpu.at_once = True
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["rows"], name="look-up"),
        helper.make_node("Relu", ["rows"], ["a"], name="left"),
        helper.make_node("Neg", ["rows"], ["b"], name="right"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    table = {"table": np.arange(12, dtype=np.float32).reshape(3, 4)}
    graph = parse(_model(nodes, {"i": ["rows"]}, ["y"], table, integers=("i",)), {"i": (2,)})
    other = 1 - fails_on
    placement = Placement({"look-up": fails_on, "left": other, "right": fails_on, "sum": other})
    with closing(Executor(graph, placement, devices)) as both:
        for _ in range(2):
            with pytest.raises(Exception, match=r"index|indices"):
                both.compute([np.array([0, 7], np.int32)])
            np.testing.assert_array_equal(both.compute([np.array([0, 2], np.int32)])[0], np.zeros((2, 4)))


def test_the_real_onnx_runtime_binds_addresses_and_copies_what_is_elsewhere_at_once(whole: Any) -> None:
    """What `absent_gpu` is made after, as far as a build without CUDA shows it."""
    neg = _model([helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": ["rows"]}, ["y"])
    session = whole(neg)
    memory = np.arange(8, dtype=np.float32)
    assert [place.name for place in session.get_input_memory_infos()] == ["Cpu"]
    recorded = onnxruntime.SessionOptions()
    recorded.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    told = onnxruntime.InferenceSession(neg.SerializeToString(), recorded, providers=["CPUExecutionProvider"])
    assert [part.ep_name for part in told.get_provider_graph_assignment_info()] == ["CPUExecutionProvider"]
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, (8,), memory.ctypes.data)
    with pytest.raises(RuntimeError, match="data transfer"):
        binding.bind_input("x", "cuda", 0, np.float32, (8,), memory.ctypes.data)
    found = np.zeros(8, np.float32)
    binding.bind_output("y", "cpu", 0, np.float32, (8,), found.ctypes.data)
    queued = call(session, binding, ahead=True)
    for _ in range(2):
        memory += 1
        queued()
        np.testing.assert_array_equal(found, -memory)


def _member(
    models: ModuleType, folder: Path, wanted: Partition | None = None
) -> tuple[Member, Path, tuple[TensorSpec], tuple[TensorSpec]]:
    path = folder / "model.onnx"
    onnx.save(models.stacked("LSTM", 16, 2, 16), str(path))
    source = ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX)
    x = TensorSpec(name="x", datatype=Datatype.FP32, shape=(16, 16))
    y = TensorSpec(name="y", datatype=Datatype.FP32, shape=(models.CLASSES,))
    return Member(name="m", model=source, partition=wanted), path, (x,), (y,)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    integers: tuple[str, ...] = (),
) -> onnx.ModelProto:
    def value(name: str, shape: list[Any] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT32 if name in integers else TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "made",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
