"""What is spread over two devices, and how, for tests of cores, of a GPU that is there, and of one that is not."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from ensemble_runtime.partition.graph import Graph, Placement


def spread(graph: Graph, seed: int) -> Placement:
    """Any device for any operator."""
    chance = random.Random(seed)
    return Placement({x.name: chance.randrange(2) for x in graph.operators})


def batches(count: int, rows: tuple[int, ...], *shape: int) -> Iterator[np.ndarray]:
    """Different rows each time, also where their number is the same."""
    chance = np.random.default_rng(7)
    for i in range(count):
        yield chance.normal(size=(rows[i % len(rows)], *shape)).astype(np.float32)


BUILDS = {
    "stacked": lambda models, kind: models.stacked(kind, 24, 3, 12),
    "both directions": lambda models, kind: models.stacked(kind, 24, 2, 12, both=True),
    "encoder and decoder": lambda models, kind: models.encoder_decoder(kind, 24, 2, 12),
    "branches": lambda models, kind: models.branches(kind, 24, 3, 12),
    "odd": lambda models, kind: models.stacked(kind, 9, 3, 12),
}


def backend_cases() -> list[Any]:
    # Importing a module of cases collects them; `collect_testcases` would compute those of all operators.
    for module in ("gru", "lstm", "rnn"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    recurrent = ("LSTM", "GRU", "RNN")
    found = [x for x in node_cases._NodeTestCases if x.model.graph.node[0].op_type in recurrent]
    assert len(found) >= 14
    return found


def with_weights(model: onnx.ModelProto, inputs: list[Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The case with its weights inside the model, where a real model has them."""
    given = {x.name: value for x, value in zip(model.graph.input, inputs, strict=True)}
    node = model.graph.node[0]
    weights = {name for i, name in enumerate(node.input) if i in (1, 2, 3, 7) and name}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kept = [x for x in changed.graph.input if x.name not in weights]
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    changed.graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in sorted(weights))
    return changed, {name: value for name, value in given.items() if name not in weights}
