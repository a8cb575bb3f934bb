"""ONNX's own cases for LSTM, GRU and RNN, opened and on two devices."""

from __future__ import annotations

import importlib
from contextlib import closing
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from ensemble_runtime.config import Device
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Placement, parse
from ensemble_runtime.partition.opening import opened, openings


def backend_cases() -> list[Any]:
    # Importing a module of cases collects them; `collect_testcases` would compute those of all operators.
    for module in ("gru", "lstm", "rnn"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    recurrent = ("LSTM", "GRU", "RNN")
    found = [x for x in node_cases._NodeTestCases if x.model.graph.node[0].op_type in recurrent]
    assert len(found) >= 14
    return found


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("case", backend_cases(), ids=lambda case: case.name)
def test_backend_case(two_devices: tuple[Device, Device], case: Any, first: int, steps: int) -> None:
    for inputs, outputs in case.data_sets:
        model, feeds = with_weights(case.model, inputs)
        graph = parse(model, {name: value.shape for name, value in feeds.items()})
        assert len(openings(graph)) == 1
        changed = opened(graph, dict.fromkeys(openings(graph), steps))
        device = {x.name: (first + i) % 2 for i, x in enumerate(changed.operators)}
        with closing(Executor(changed, Placement(device), two_devices)) as both:
            found = both.compute([feeds[name] for name in changed.inputs])
        for expected, answer in zip(outputs, found, strict=True):
            np.testing.assert_allclose(answer, expected, rtol=case.rtol, atol=case.atol)


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
