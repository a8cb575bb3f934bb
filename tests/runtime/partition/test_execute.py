"""Models on two devices give the numbers of ONNX Runtime on one, however their operators are spread."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.config import Device
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, Placement, parse
from ensemble_runtime.partition.halving import halved
from ensemble_runtime.partition.opening import opened, openings
from ensemble_runtime.partition.shapes import shapes_of

Devices = tuple[Device, Device]
Whole = Callable[[onnx.ModelProto], Any]


def spread(graph: Graph, seed: int) -> Placement:
    """Any device for any operator, in any topological order."""
    chance = random.Random(seed)
    waiting = {x.name: len(graph.predecessors[x.name]) for x in graph.operators}
    order = []
    while waiting:
        name = chance.choice(sorted(name for name, count in waiting.items() if not count))
        del waiting[name]
        order.append(name)
        for after in graph.successors[name]:
            waiting[after] -= 1
    return Placement({name: chance.randrange(2) for name in order}, tuple(order))


@contextmanager
def executor(graph: Graph, placement: Placement, devices: Devices) -> Iterator[Executor]:
    with closing(Executor(graph, placement, devices)) as found:
        yield found


KINDS = ["LSTM", "GRU", "RNN"]
BUILDS: dict[str, Callable[[ModuleType, str], onnx.ModelProto]] = {
    "stacked": lambda models, kind: models.stacked(kind, 24, 3, 12),
    "both directions": lambda models, kind: models.stacked(kind, 24, 2, 12, both=True),
    "encoder and decoder": lambda models, kind: models.encoder_decoder(kind, 24, 2, 12),
    "branches": lambda models, kind: models.branches(kind, 24, 3, 12),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("steps", [0, 5, 1])
def test_recurrent_models(
    recurrent_models: ModuleType, whole: Whole, two_devices: Devices, kind: str, build: str, steps: int
) -> None:
    model = BUILDS[build](recurrent_models, kind)
    graph = parse(model, {"x": (3, 12, 24)})
    changed = opened(graph, dict.fromkeys(openings(graph), steps))
    alone = whole(model)
    for seed in range(2):
        with executor(changed, spread(changed, seed), two_devices) as both:
            for rows in (3, 1, 5, 3):
                x = np.random.default_rng(rows).normal(size=(rows, 12, 24)).astype(np.float32)
                (found,) = both.compute([x])
                np.testing.assert_allclose(found, alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


LARGE: dict[str, Callable[[ModuleType], onnx.ModelProto]] = {
    "stacked": lambda models: models.stacked("LSTM", 512, 2, 5),
    "both directions": lambda models: models.stacked("LSTM", 512, 1, 5, both=True),
    "encoder and decoder": lambda models: models.encoder_decoder("LSTM", 512, 1, 5),
}


@pytest.mark.parametrize("build", LARGE)
def test_large_layers_by_gates(recurrent_models: ModuleType, whole: Whole, two_devices: Devices, build: str) -> None:
    """Half of the units on each device, exchanged at every step, give the numbers of the whole."""
    model = LARGE[build](recurrent_models)
    found = halved(parse(model, {"x": (2, 5, 512)}))
    assert found is not None
    graph, placement = found
    assert not {"LSTM"} & {x.op_type for x in graph.operators}
    alone = whole(model)
    with executor(graph, placement, two_devices) as both:
        for rows in (2, 1, 3):
            x = np.random.default_rng(rows).normal(size=(rows, 5, 512)).astype(np.float32)
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
        held = both.held_bytes
    weights = sum(graph.weights.values())
    assert all(abs(half - weights / 2) < weights / 50 for half in held), "no weight is on both devices"


@pytest.mark.parametrize(("kind", "hidden"), [("LSTM", 256), ("GRU", 640)])
def test_what_gains_nothing_by_gates_stays_as_it_is(recurrent_models: ModuleType, kind: str, hidden: int) -> None:
    """Small layers, whose steps are over too soon, and kinds whose halves need more than one exchange a step."""
    assert halved(parse(recurrent_models.stacked(kind, hidden, 1, 3), {"x": (1, 3, hidden)})) is None


@pytest.mark.parametrize("seed", range(3))
def test_silero_vad(whole: Whole, two_devices: Devices, seed: int) -> None:
    """A real model: convolutions, an LSTM over the whole recording, its states in and out."""
    path = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k_sequence.onnx")))
    model = onnx.load(path)
    chance = np.random.default_rng(seed)
    shapes = {"input": (40, 576), "h": (1, 1, 128), "c": (1, 1, 128)}
    feeds = {name: chance.normal(size=shape, scale=0.1).astype(np.float32) for name, shape in shapes.items()}
    graph = parse(model, shapes)
    changed = opened(graph, dict.fromkeys(openings(graph), 8))
    assert sum(x.op_type == "LSTM" for x in changed.operators) == 5
    with executor(changed, spread(changed, seed), two_devices) as both:
        for expected, found in zip(
            whole(model).run(list(graph.outputs), feeds), both.compute([feeds[x] for x in graph.inputs]), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "rate", "samples"),
    [("silero_vad.onnx", 16000, 576), ("silero_vad.onnx", 8000, 288), ("silero_vad_16k_op15.onnx", 16000, 576)],
)
def test_silero_vad_with_branches(whole: Whole, two_devices: Devices, file: str, rate: int, samples: int) -> None:
    """Each branch stays one operator; in the first file all of the model is in branches, one for each sampling rate."""
    path = Path(str(distribution("silero-vad").locate_file(f"silero_vad/data/{file}")))
    model = onnx.load(path)
    feeds = {
        "input": np.random.default_rng(0).normal(size=(2, samples)).astype(np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(rate, np.int64),
    }
    graph = parse(model, {name: feeds[name].shape for name in (x.name for x in model.graph.input)})
    assert "If" in {x.op_type for x in graph.operators}
    for seed in range(4):
        with executor(graph, spread(graph, seed), two_devices) as both:
            answers = both.compute([feeds[x] for x in graph.inputs])
        for found, expected in zip(answers, whole(model).run(list(graph.outputs), feeds), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_chunks_of_a_layer_share_one_session(recurrent_models: ModuleType, two_devices: Devices) -> None:
    model = recurrent_models.stacked("LSTM", 64, 2, 12)
    graph = parse(model, {"x": (1, 12, 64)})
    changed = opened(graph, dict.fromkeys(openings(graph), 2))
    layers = {name: i for i, name in enumerate(openings(graph))}
    device = {x.name: layers.get(x.name.split("/")[0], 0) for x in changed.operators}
    with executor(changed, Placement(device), two_devices) as both:
        assert both.held_bytes[0] + both.held_bytes[1] <= sum(changed.weights.values())


def test_one_device_may_have_nothing_to_do(recurrent_models: ModuleType, whole: Whole, two_devices: Devices) -> None:
    model = recurrent_models.stacked("GRU", 8, 1, 4)
    graph = parse(model, {"x": (2, 4, 8)})
    x = np.ones((2, 4, 8), np.float32)
    for device in (0, 1):
        with executor(graph, Placement({y.name: device for y in graph.operators}), two_devices) as both:
            np.testing.assert_allclose(both.compute([x])[0], whole(model).run(None, {"x": x})[0], rtol=1e-5)


def test_no_thread_or_process_is_created_for_a_batch(recurrent_models: ModuleType, two_devices: Devices) -> None:
    """One process comes with the executor, and goes with it."""
    model = recurrent_models.stacked("LSTM", 8, 2, 8)
    graph = parse(model, {"x": (2, 8, 8)})
    own = psutil.Process()
    before = {x.pid for x in own.children()}
    with executor(graph, spread(graph, 0), two_devices) as both:
        (second,) = (x for x in own.children() if x.pid not in before)
        both.compute([np.ones((1, 8, 8), np.float32)])
        threads = own.num_threads(), second.num_threads()
        for rows in (1, 2, 3):
            both.compute([np.ones((rows, 8, 8), np.float32)])
            assert (own.num_threads(), second.num_threads()) == threads
            assert {x.pid for x in own.children()} == before | {second.pid}
    assert {x.pid for x in own.children()} == before


def test_without_its_second_process_an_executor_ends_its_own(
    recurrent_models: ModuleType, two_devices: Devices
) -> None:
    """What that held is lost: whoever started both has to start them anew."""
    model = recurrent_models.stacked("LSTM", 8, 2, 8)
    graph = parse(model, {"x": (2, 8, 8)})
    own = psutil.Process()
    before = {x.pid for x in own.children()}
    with executor(graph, spread(graph, 0), two_devices) as both:
        both.compute([np.ones((2, 8, 8), np.float32)])
        (second,) = (x for x in own.children() if x.pid not in before)
        second.kill()
        with pytest.raises(SystemExit):
            both.compute([np.ones((2, 8, 8), np.float32)])


@pytest.mark.parametrize("halted", [False, True])
def test_a_second_process_goes_with_the_first_also_while_it_is_stopped(two_devices: Devices, halted: bool) -> None:
    """However the first one ends; but not with the thread that started it."""
    started = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, two_devices[1].model_dump_json(by_alias=True)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert started.stdout is not None
    second = psutil.Process(int(started.stdout.readline()))
    if halted:
        second.suspend()
    started.kill()
    started.communicate()
    second.wait(5)


_HOLDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ensemble_runtime.config import Device
from ensemble_runtime.partition.second import SecondDevice, SharedMemory
device = Device.model_validate_json(sys.argv[1])
with ThreadPoolExecutor(1) as pool:
    second = pool.submit(SecondDevice, device).result()
second.bind(SharedMemory(64), 64, ())
print(second._process.pid, flush=True)
sys.stdin.read()
"""


def failing_model() -> onnx.ModelProto:
    """Looks up rows of a table on one side while the other side has work of its own; an index too large raises."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "i"], ["rows"], name="look-up"),
            helper.make_node("Relu", ["rows"], ["a"], name="left"),
            helper.make_node("Neg", ["rows"], ["b"], name="right"),
            helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
        ],
        "failing",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("fails_on", [0, 1])
def test_a_failure_ends_the_batch_and_not_the_executor(two_devices: Devices, fails_on: int) -> None:
    graph = parse(failing_model(), {"i": (2,)})
    other = 1 - fails_on
    device = {"look-up": fails_on, "left": other, "right": fails_on, "sum": other}
    with executor(graph, Placement(device), two_devices) as both:
        for _ in range(3):
            with pytest.raises(Exception, match=r"index|indices"):
                both.compute([np.array([0, 7])])
            np.testing.assert_array_equal(both.compute([np.array([0, 2])])[0], np.zeros((2, 4)))


def shared_bytes() -> int:
    """Of memory that this process has for sharing."""
    files = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(link.readlink()).startswith("/memfd:partition"):
                files[link.stat().st_ino] = link.stat().st_size
    return sum(files.values())


def test_every_number_of_rows_is_bound_once_in_the_memory_of_a_full_batch(
    recurrent_models: ModuleType, whole: Whole, two_devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recurrent_models.stacked("LSTM", 8, 2, 32)
    graph = parse(model, {"x": (40, 32, 8)})
    changed = opened(graph, dict.fromkeys(openings(graph), 16))
    bound: list[object] = []

    def counting(model: onnx.ModelProto, shapes: Any, large: Any) -> Any:
        bound.append(shapes)
        return shapes_of(model, shapes, large)

    monkeypatch.setattr("ensemble_runtime.partition.execute.shapes_of", counting)
    alone, chance = whole(model), np.random.default_rng(0)
    with executor(changed, spread(changed, 0), two_devices) as both:
        before = shared_bytes()
        both.compute([np.ones((40, 32, 8), np.float32)])
        full = shared_bytes() - before
        for rows in (*range(1, 41), *range(40, 0, -3)):
            x = chance.normal(size=(rows, 32, 8)).astype(np.float32)
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)
        assert len(bound) == 40
        assert shared_bytes() - before < 3 * full, "40 states that begin as zeros, not 40 times everything"


def test_more_shapes_than_are_kept(
    recurrent_models: ModuleType, whole: Whole, two_devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_runtime.partition.execute._MOST_PLANS", 3)
    model = recurrent_models.stacked("GRU", 8, 2, 8)
    graph = parse(model, {"x": (4, 8, 8)})
    alone, chance = whole(model), np.random.default_rng(0)
    with executor(graph, spread(graph, 1), two_devices) as both:
        for rows in (1, 2, 3, 4, 1, 6, 2, 4, 5, 1):
            x = chance.normal(size=(rows, 8, 8)).astype(np.float32)
            np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_shapes_that_do_not_fit(recurrent_models: ModuleType, two_devices: Devices) -> None:
    graph = parse(recurrent_models.stacked("LSTM", 8, 2, 6), {"x": (1, 6, 8)})
    changed = opened(graph, dict.fromkeys(openings(graph), 2))
    with executor(changed, spread(changed, 0), two_devices) as both:
        with pytest.raises(ModelInvalidError):
            both.compute([np.ones((1, 7, 8), np.float32)])
        assert both.compute([np.ones((1, 6, 8), np.float32)])[0].shape == (1, 8)


def test_a_placement_must_know_all_operators(recurrent_models: ModuleType, two_devices: Devices) -> None:
    graph = parse(recurrent_models.stacked("LSTM", 8, 1, 6), {"x": (1, 6, 8)})
    with pytest.raises(ModelInvalidError, match="no device"):
        Executor(graph, Placement({}), two_devices)
    everywhere = {x.name: 0 for x in graph.operators}
    backwards = tuple(x.name for x in reversed(graph.operators))
    with pytest.raises(ModelInvalidError, match="order"):
        Executor(graph, Placement(everywhere, backwards), two_devices)
