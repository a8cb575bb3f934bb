"""Two layers whose devices multiply for each other: the same numbers, by other hands."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

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
from ensemble_runtime.partition import model as partitioned
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Placement, parse
from ensemble_runtime.partition.lending import BEHIND, SHORT, lent
from ensemble_runtime.partition.model import PartitionedModel, split
from ensemble_runtime.partition.runs import Run, program
from ensemble_runtime.partition.sessions import cut_out
from ensemble_runtime.partition.shapes import inferred

Devices = tuple[Device, Device]
STEPS, HIDDEN = 22, 24


def products(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if any("/products/" in name for name in run.operators)]


def of_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Two layers with states of their own, as a stack of LSTMs may have been exported once."""
    states = numpy_helper.from_array(np.zeros((1, 1, 8), np.float32), "states")
    model.graph.initializer.append(states)
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.input.extend(["", "states", "states"])
        if node.op_type == "Squeeze":
            del node.input[1:]
            node.attribute.append(helper.make_attribute("axes", [1]))
    model.opset_import[0].version = version
    return model


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("steps", [STEPS, STEPS + 1, 3 * STEPS])
def test_the_numbers_stay_whoever_multiplies(
    recurrent_models: ModuleType, whole: Any, two_devices: Devices, kind: str, steps: int
) -> None:
    """On the devices that are proposed and on any others."""
    model = recurrent_models.stacked(kind, HIDDEN, 2, steps)
    found = lent(parse(model, {"x": (1, steps, HIDDEN)}), 2)
    assert found is not None
    graph, proposed = found
    chance = random.Random(steps)
    anywhere = Placement({name: chance.randrange(2) for name in proposed.device}, proposed.order)
    alone = whole(model)
    for placement in (proposed, anywhere):
        with closing(Executor(graph, placement, two_devices)) as both:
            for i in range(4):
                x = np.random.default_rng(i).normal(size=(1, steps, HIDDEN)).astype(np.float32)
                np.testing.assert_allclose(both.compute([x])[0], alone.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_a_product_is_one_call_of_the_device_that_would_wait(recurrent_models: ModuleType) -> None:
    model = recurrent_models.stacked("GRU", HIDDEN, 2, STEPS)
    found = lent(parse(model, {"x": (1, STEPS, HIDDEN)}), 2)
    assert found is not None
    graph, placement = found
    runs = program(graph, placement).runs
    assert [run.device for run in products(runs)] == [1, 1] + [0] * BEHIND, "some at once, and later one by one"
    assert all({graph.by_name[x].op_type for x in run.operators} >= {"MatMul", "Transpose"} for run in products(runs))
    second = next(i for i, run in enumerate(runs) if run.device == 1)
    assert runs[second] in products(runs) and runs[second].waits is None
    chunks = [run for run in runs if run not in products(runs) and run.device == 0]
    assert len(chunks) == 9
    # Each of the later products is made as soon as there is something to multiply.
    own = [run for run in runs if run.device == 0]
    for run in products(own):
        before = own[own.index(run) - 1]
        assert before in chunks or before in products(own)
    assert [own.index(run) for run in products(own)] == [6, 8, 10, 12]
    assert len({run.inputs[0] for run in chunks[1:SHORT]}) == 1, "ones, in the place of the chunk's inputs"


def test_alike_chunks_and_alike_products_are_of_one_session(recurrent_models: ModuleType) -> None:
    """Each session has its own copy of the weights; and to serve nothing else needs them."""
    found = lent(parse(recurrent_models.stacked("GRU", HIDDEN, 2, STEPS), {"x": (1, STEPS, HIDDEN)}), 2)
    assert found is not None
    graph, placement = found
    runs = program(graph, placement).runs
    pieces = [{cut_out(graph, run.operators).piece for run in runs if run.device == device} for device in (0, 1)]
    assert len(pieces[0]) == 3, "chunks as they are, chunks with products, and the other layer's products"
    assert len(pieces[1]) == 5, "the same, products of short and of long chunks, and the last operators"
    assert inferred(graph.light, {"x": (1, STEPS, HIDDEN)})


def test_a_long_way_to_the_first_layer(recurrent_models: ModuleType) -> None:
    model = recurrent_models.stacked("GRU", 8, 2, STEPS)
    names = ["x", *(f"far{i}" for i in range(1500))]
    for before, after in pairwise(names):
        model.graph.node.append(helper.make_node("Relu", [before], [after], name=after))
    way = [model.graph.node.pop() for _ in names[1:]]
    model.graph.node[0].input[0] = names[-1]
    nodes = [*reversed(way), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert lent(parse(model, {"x": (1, STEPS, 8)}), 2) is not None


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (lambda models: models.stacked("LSTM", 8, 1, STEPS), 2),
        (lambda models: models.stacked("LSTM", 8, 3, STEPS), 2),
        (lambda models: models.stacked("LSTM", 8, 2, STEPS, both=True), 2),
        (lambda models: models.stacked("LSTM", 8, 2, STEPS), 3),
        (lambda models: models.stacked("LSTM", 8, 2, STEPS), 0),
        (lambda models: models.branches("LSTM", 8, 2, STEPS), 2),
        (lambda models: of_opset(models.stacked("LSTM", 8, 2, STEPS), 8), 2),
    ],
    ids=["one layer", "three layers", "two directions", "too few chunks", "no chunks", "side by side", "old"],
)
def test_others_are_left_as_they_are(recurrent_models: ModuleType, build: Any, steps: int) -> None:
    assert lent(parse(build(recurrent_models), {"x": (1, STEPS, 8)}), steps) is None


def test_several_rows_do_not_meet(recurrent_models: ModuleType) -> None:
    """A product of ones and of what is not a number is not one: rows of other requests would feel it."""
    assert lent(parse(recurrent_models.stacked("GRU", 8, 2, STEPS), {"x": (2, STEPS, 8)}), 2) is None


def test_it_is_tried_and_serves_where_it_is_the_quickest(
    recurrent_models: ModuleType, whole: Any, two_devices: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(recurrent_models.stacked("LSTM", HIDDEN, 2, 64), str(path))
    latency = Partition(objective=PartitionObjective.LATENCY)
    member = Member(name="m", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX), partition=latency)
    x_spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(64, HIDDEN))
    y_spec = TensorSpec(name="y", datatype=Datatype.FP32, shape=(recurrent_models.CLASSES,))

    def lends(model: Any) -> bool:
        return isinstance(model, PartitionedModel) and bool(products(model._executor._program.runs))

    monkeypatch.setattr(partitioned, "on_trial", lambda models, _: [0.0 if lends(x) else 1.0 for x in models])
    model = split(member, path, (x_spec,), (y_spec,), two_devices, 1)
    assert isinstance(model, PartitionedModel)
    with closing(model):
        assert lends(model)
        x = np.random.default_rng(0).normal(size=(1, 64, HIDDEN)).astype(np.float32)
        right = whole(onnx.load(str(path))).run(None, {"x": x})[0]
        np.testing.assert_allclose(model.predict([x])[0], right, rtol=1e-5, atol=1e-6)
