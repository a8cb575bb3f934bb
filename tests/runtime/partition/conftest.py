"""Two devices, and models to spread over them."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
from absent_gpu import AbsentGpu, install

from ensemble_runtime.config import Device, DeviceKind


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub of CUDA's driver."""
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so"
    source = Path(__file__).with_name("stub_cuda.c")
    flags = ("-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *flags, "-o", library, source], check=True)
    return library


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, driver: Path, tmp_path: Path) -> Iterator[AbsentGpu]:
    """A GPU that is not there, in this process's ONNX Runtime; no session on it is closed as would end the process."""
    # A copy of its own: what one test breaks is whole for the next.
    found = install(monkeypatch, Path(shutil.copy(driver, tmp_path)))
    yield found
    gc.collect()
    assert found.lost or not (found.aborts or found.stray)


@pytest.fixture
def two_devices() -> Iterator[tuple[Device, Device]]:
    """Two cores, this thread being bound to the first; the same core twice where there is but one."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[0]})
    yield (_device("first", cores[0]), _device("second", cores[-1]))
    os.sched_setaffinity(0, before)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def whole() -> object:
    """ONNX Runtime on a model as it is."""
    return session


def _device(name: str, core: int) -> Device:
    return Device(name=name, kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=(core,))
