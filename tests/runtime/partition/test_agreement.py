"""A partition serves only if it answers as the whole model does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
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
    Precision,
    TensorSpec,
)
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.model import Array
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.agreement import disagreement, drawn, tolerated
from ensemble_runtime.partition.model import PartitionedModel, split

INPUTS = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(4,)),)


@dataclass
class Computing:
    """A model that computes a function of its only input."""

    function: Callable[[Array], Array]

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        return [self.function(inputs[0])]


@dataclass
class Stale:
    """A model that keeps to the first rows that it was given."""

    first: list[Sequence[Array]] = field(default_factory=list)

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        self.first.append(list(inputs))
        return [np.tanh(self.first[0][0])]


WHOLE = Computing(np.tanh)


def test_parts_that_are_wrong_for_one_row_alone_do_not_agree() -> None:
    """Whose tensors begin elsewhere than those of a full batch."""
    parts = Computing(lambda x: np.tanh(x) + (len(x) == 1))
    why = disagreement(parts, drawn(WHOLE, INPUTS, 8), 1e-4)
    assert why is not None and "batch 3 of 3" in why


def test_parts_that_answer_alike_may_serve() -> None:
    rounded = Computing(lambda x: np.tanh(x) + np.float32(1e-6))
    assert disagreement(rounded, drawn(WHOLE, INPUTS, 3), 1e-4) is None


def test_what_stood_there_first_is_right_once() -> None:
    why = disagreement(Stale(), drawn(WHOLE, INPUTS, 3), 2e-2)
    assert why is not None and "batch 2 of 3" in why


def test_a_wrong_number_in_one_place_is_found() -> None:
    def off(x: Array) -> Array:
        answer = np.tanh(x)
        answer[-1, -1] += 0.01
        return answer

    why = disagreement(Computing(off), drawn(WHOLE, INPUTS, 3), 1e-4)
    assert why is not None and "output 0" in why
    assert disagreement(Computing(off), drawn(WHOLE, INPUTS, 3), 2e-2) is None


def test_numbers_that_are_none_and_other_shapes_are_found() -> None:
    assert disagreement(Computing(lambda x: x * np.nan), drawn(WHOLE, INPUTS, 3), 2e-2) is not None
    assert disagreement(Computing(lambda x: np.tanh(x[:1])), drawn(WHOLE, INPUTS, 3), 2e-2) is not None


def test_whole_numbers_have_to_be_equal() -> None:
    labels = Computing(lambda x: x.argmax(axis=1))
    assert disagreement(labels, drawn(labels, INPUTS, 3), 1e-4) is None
    assert disagreement(Computing(lambda x: x.argmin(axis=1)), drawn(labels, INPUTS, 3), 2e-2) is not None


def test_parts_that_fail_do_not_serve() -> None:
    def failing(x: Array) -> Array:
        raise RuntimeError("no such address")

    why = disagreement(Computing(failing), drawn(WHOLE, INPUTS, 3), 1e-4)
    assert why is not None and "no such address" in why


def test_parts_that_have_no_room_are_not_wrong() -> None:
    def crowded(x: Array) -> Array:
        raise RuntimeError("Failed to allocate memory")

    with pytest.raises(OutOfMemoryError, match="has no room"):
        disagreement(Computing(crowded), drawn(WHOLE, INPUTS, 3), 1e-4)


def test_a_whole_model_that_fails_is_told_of_in_one_line() -> None:
    def failing(x: Array) -> Array:
        raise RuntimeError("no such\naddress")

    with pytest.raises(ModelInvalidError, match=r"^fails on made-up rows: RuntimeError: no such$"):
        drawn(Computing(failing), INPUTS, 3)


def test_a_gpu_and_half_precision_are_held_to_less(two_devices: tuple[Device, Device]) -> None:
    gpu = Device(name="gpu0", kind=DeviceKind.GPU, type="some-gpu", memory_bytes=2**30, uuid="GPU-0")
    exact = tolerated(Precision.FP32, two_devices)
    assert exact < tolerated(Precision.FP32, (gpu, two_devices[1]))
    assert exact < tolerated(Precision.FP16, two_devices)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_member_is_served_whole_where_its_parts_disagree(
    recurrent_models: ModuleType,
    two_devices: tuple[Device, Device],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: bool,
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(recurrent_models.stacked("LSTM", 16, 2, 16), str(path))
    wanted = Partition(objective=PartitionObjective.MEMORY, latency_ms=60_000)
    member = Member(
        name="m", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX), precision="FP32", partition=wanted
    )
    inputs = (TensorSpec(name="x", datatype=Datatype.FP32, shape=(16, 16)),)
    outputs = (TensorSpec(name="y", datatype=Datatype.FP32, shape=(recurrent_models.CLASSES,)),)
    if wrong:
        real, first = PartitionedModel.predict, []

        def stale(self: PartitionedModel, inputs: Sequence[Array]) -> list[Array]:
            first.append(inputs)
            return real(self, first[0])

        monkeypatch.setattr(PartitionedModel, "predict", stale)
    with caplog.at_level(logging.WARNING):
        model = split(member, path, inputs, outputs, two_devices, 2)
    try:
        assert isinstance(model, OnnxModel if wrong else PartitionedModel)
        said = [record.getMessage() for record in caplog.records]
        assert [bool("batch 2 of 3" in text) for text in said] == [True] * wrong
        x = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
        alone = OnnxModel(member, path, inputs, outputs, two_devices[0])
        np.testing.assert_allclose(model.predict([x])[0], alone.predict([x])[0], rtol=1e-5, atol=1e-6)
    finally:
        if isinstance(model, PartitionedModel):
            model.close()
