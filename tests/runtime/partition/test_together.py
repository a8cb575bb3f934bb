"""A whole model on two sets of cores: the same numbers, and threads where they belong."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import psutil
import pytest

from ensemble_runtime.config import Datatype, Device, Member, ModelFormat, ModelSource, TensorSpec
from ensemble_runtime.partition.together import able, together

Devices = tuple[Device, Device]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_both_devices_compute_one_model(
    recurrent_models: ModuleType, whole: object, two_devices: Devices, tmp_path: Path, kind: str
) -> None:
    model = recurrent_models.stacked(kind, 256, 2, 8)
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    member = Member(name="m", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX))
    inputs = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(8, 256)),)
    outputs = (TensorSpec(name="y", datatype=Datatype.FP32, shape=(recurrent_models.CLASSES,)),)
    before = {thread.id for thread in psutil.Process().threads()}
    affinity = os.sched_getaffinity(0)
    both = together(member, path, inputs, outputs, two_devices)
    assert os.sched_getaffinity(0) == affinity, "this thread stays where it was"
    (born,) = {thread.id for thread in psutil.Process().threads()} - before
    assert os.sched_getaffinity(born) == set(two_devices[1].cores)
    for rows in (1, 3):
        x = np.random.default_rng(rows).normal(size=(rows, 8, 256)).astype(np.float32)
        (expected,) = whole(model).run(None, {"x": x})  # type: ignore[operator]
        np.testing.assert_allclose(both.predict([x])[0], expected, rtol=1e-5, atol=1e-6)
        assert len(psutil.Process().threads()) == len(before) + 1, "none is created for a batch"


def test_cores_that_are_shared_with_others_do_not_wait_for_each_other(two_devices: Devices) -> None:
    first, second = two_devices
    assert able(two_devices)
    assert not able((first, second.model_copy(update={"cores": ()})))
    assert not able((first.model_copy(update={"kind": "GPU"}), second))
