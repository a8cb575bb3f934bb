"""ONNX's own cases for LSTM, GRU and RNN, opened and on two devices."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from spreading import backend_cases, with_weights

from ensemble_runtime.config import Device
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Placement, parse
from ensemble_runtime.partition.opening import opened, openings


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
