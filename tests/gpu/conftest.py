"""Tests on a GPU that is there (`make test-gpu`). Where there is none, or ONNX Runtime cannot use it, or several
processes test at once (`make test`), none of them is collected.

This process is bound to the first GPU. As far as NVIDIA's libraries obey, FP32 is computed in FP32
(`NVIDIA_TF32_OVERRIDE`), so that answers of a GPU can be held against those of a core. Tests that read how much memory
is free want the GPU for themselves: they are not for several processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
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
from ensemble_runtime.devices import nvidia
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.devices.local import discover

_ABLE = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and nvidia.gpus()
collect_ignore_glob = [] if _ABLE and "PYTEST_XDIST_WORKER" not in os.environ else ["test_*.py"]

Case = tuple[Member, Path, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""What `load` and its like take first."""


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU, to which this process is bound."""
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    found = next(device for device in discover() if device.kind is DeviceKind.GPU)
    bind(found)
    return found


@pytest.fixture(scope="session")
def core() -> Device:
    """One core, the last of this process."""
    last = max(os.sched_getaffinity(0))
    return Device(name=f"core-{last}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**32, cores=(last,))


@pytest.fixture(scope="session")
def whole() -> Callable[[onnx.ModelProto], onnxruntime.InferenceSession]:
    """ONNX Runtime on a model as it is, on cores."""

    def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    return session


@pytest.fixture
def case(recurrent_models: ModuleType, tmp_path: Path) -> Callable[..., Case]:
    """A stack of recurrent layers as a member, with its file."""

    def make(
        kind: str = "LSTM",
        hidden: int = 64,
        layers: int = 2,
        steps: int = 16,
        objective: PartitionObjective | None = None,
        latency_ms: float | None = None,
    ) -> Case:
        path = tmp_path / f"{kind}-{hidden}-{layers}.onnx"
        onnx.save(recurrent_models.stacked(kind, hidden, layers, steps), str(path))
        source = ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX)
        wanted = None if objective is None else Partition(objective=objective, latency_ms=latency_ms)
        member = Member(name="stack", model=source, precision=Precision.FP32, partition=wanted)
        x = TensorSpec(name="x", datatype=Datatype.FP32, shape=(steps, hidden))
        y = TensorSpec(name="y", datatype=Datatype.FP32, shape=(recurrent_models.CLASSES,))
        return member, path, (x,), (y,)

    return make
