"""Members on simulated devices: their answers are known, and belong to their row alone."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.config import Datatype, Device, DeviceKind, TensorSpec
from ensemble_runtime.devices.simulated import SimulatedClock
from ensemble_runtime.members.checks import check_outputs
from ensemble_runtime.members.simulated_model import SimulatedModel, simulated_outputs

OUTPUTS = (
    TensorSpec(name="p", datatype=Datatype.FP32, shape=(3,)),
    TensorSpec(name="boxes", datatype=Datatype.FP64, shape=(-1, 4)),
    TensorSpec(name="label", datatype=Datatype.INT64, shape=()),
)


def device(**seconds):
    return Device(name="s", kind=DeviceKind.SIMULATED, type="sim", memory_bytes=1, seconds=seconds)


@given(rows=st.integers(1, 20), column=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_a_row_is_answered_alike_in_whatever_batch(rows, column, seed):
    inputs = [np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32), np.arange(rows)[:, None]]
    together = simulated_outputs(inputs, OUTPUTS, column)
    check_outputs("m", together, OUTPUTS, rows)
    for i in range(rows):
        alone = simulated_outputs([x[i : i + 1] for x in inputs], OUTPUTS, column)
        assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


def test_the_stated_formula():
    (answer, *_) = simulated_outputs([np.array([[1.0, 3.0]]), np.array([[4.0]])], OUTPUTS, column=10)
    np.testing.assert_allclose(answer, [[13.0, 13 + 1 / 3, 13 + 2 / 3]], rtol=1e-6)


def test_a_batch_takes_the_stated_time():
    model = SimulatedModel(SimulatedClock(device(m={1: 0.05, 2: 0.1}), "m"), OUTPUTS, column=0)
    start = time.monotonic()
    model.predict([np.zeros((2, 5), np.float32)])
    assert time.monotonic() - start >= 0.1
