"""An ONNX Runtime with a CUDA device that is not there: its memory is kept apart, what it computes a core does.

It behaves as the real one where a partition depends on it, which is told by ONNX Runtime's sources:

- `core/session/IOBinding.cc`: an input is copied, when it is bound, to the device whose operator reads it, unless it
  is there. Only what is bound where it is read is read anew by every run.
- `core/framework/utils.cc`: an output that is bound to the host is copied there by the run that makes it.
- `python/onnxruntime_pybind_ortvalue.cc`: `update_inplace` and `numpy` copy, and return when that is done.
- Lengths, shapes and the like are read on the host by operators that compute on the GPU.

Memory of the device begins as NaN, and whatever is read of the host's as if it were the device's, or the other way
round, is an error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ensemble_runtime.config import Device, DeviceKind

READ_ON_HOST = {"LSTM": (4,), "GRU": (4,), "RNN": (4,), "Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4)}
"""Inputs, by operator."""

DEVICE = Device(name="gpu0", kind=DeviceKind.GPU, type="absent", memory_bytes=2**30, uuid="GPU-0")

Bytes = tuple[int, int]
"""Address and size."""


def at(address: int, size: int) -> np.ndarray:
    if not size:
        return np.zeros(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class AbsentGpu:
    """The device's memory, and what has crossed."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self.up: list[Bytes] = []
        """Where to on the device."""
        self.down: list[Bytes] = []
        """Where from on the device, or where to on the host if a run has left it there."""
        self.odd: list[Bytes] = []
        """Tensors that runs were bound to, and that do not begin as ONNX Runtime's own do."""
        self.copies = True
        """Whether updates do what they promise."""

    def clear(self) -> None:
        self.up.clear()
        self.down.clear()

    def allocate(self, size: int) -> int:
        block = np.full(size + 256, 0xFF, np.uint8)
        begin = -block.ctypes.data % 256
        self._blocks.append(block[begin : begin + size])
        return int(self._blocks[-1].ctypes.data)

    @property
    def allocated(self) -> int:
        return sum(block.size for block in self._blocks)

    def owns(self, address: int, size: int) -> bool:
        blocks = ((block.ctypes.data, block.size) for block in self._blocks)
        return any(start <= address and address + size <= start + length for start, length in blocks)

    def check(self, kind: str, address: int, size: int) -> None:
        assert self.owns(address, size) == (kind == "cuda"), f"{size} bytes are not in the memory of {kind}"


class Value:
    def __init__(self, gpu: AbsentGpu, address: int, size: int) -> None:
        gpu.check("cuda", address, size)
        self._gpu, self._address, self._size = gpu, address, size

    def data_ptr(self) -> int:
        return self._address

    def update_inplace(self, data: np.ndarray) -> None:
        assert data.nbytes == self._size
        self._gpu.up.append((self._address, self._size))
        if self._gpu.copies:
            at(self._address, self._size)[...] = np.ascontiguousarray(data).view(np.uint8).reshape(-1)

    def numpy(self) -> np.ndarray:
        self._gpu.down.append((self._address, self._size))
        return at(self._address, self._size).copy()


class Binding:
    def __init__(self, gpu: AbsentGpu, session: Session) -> None:
        self._gpu, self._session, self._iobinding = gpu, session, self
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, tuple[str, np.ndarray, Bytes]] = {}

    def bind_input(self, name: str, kind: str, _: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        place, array, _where = self._tensor(kind, dtype, shape, address)
        wanted = "cpu" if name in self._session.on_host else "cuda"
        self.inputs[name] = array if place == wanted else array.copy()

    def bind_output(self, name: str, kind: str, _: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        assert address
        self.outputs[name] = self._tensor(kind, dtype, shape, address)

    def get_outputs(self) -> list[Value]:
        return [Value(self._gpu, *where) for _, _, where in self.outputs.values()]

    def _tensor(self, kind: str, dtype: Any, shape: Sequence[int], address: int) -> tuple[str, np.ndarray, Bytes]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._gpu.check(kind, address, size)
        if kind == "cuda" and dtype != np.uint8 and address % 16:
            self._gpu.odd.append((address, size))
        return kind, at(address, size).view(dtype).reshape(shape), (address, size)


class Session:
    """On the device that is not there."""

    def __init__(self, gpu: AbsentGpu, real: Any, model: onnx.ModelProto) -> None:
        self._gpu, self._real, self._sess = gpu, real, self
        readers: dict[str, list[bool]] = {}
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                readers.setdefault(name, []).append(i in READ_ON_HOST.get(node.op_type, ()))
        self.on_host = {name for name, places in readers.items() if all(places)}
        for name in ("get_inputs", "get_outputs", "run"):
            setattr(self, name, getattr(real, name))

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_input_memory_infos(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="Cpu" if x.name in self.on_host else "Cuda") for x in self._real.get_inputs()]

    def io_binding(self) -> Binding:
        return Binding(self._gpu, self)

    def run_with_iobinding(self, binding: Binding, _: Any) -> None:
        answers = self._real.run(list(binding.outputs), binding.inputs)
        for answer, (kind, array, where) in zip(answers, binding.outputs.values(), strict=True):
            array[...] = answer
            if kind == "cpu":
                self._gpu.down.append(where)


def install(patch: pytest.MonkeyPatch) -> AbsentGpu:
    """Put the device into this process's ONNX Runtime."""
    gpu = AbsentGpu()
    real = onnxruntime.InferenceSession

    def session(model: Any, options: Any = None, providers: Sequence[Any] = ()) -> Any:
        found = real(model, options, providers=["CPUExecutionProvider"])
        if not any(provider[0] == "CUDAExecutionProvider" for provider in providers):
            return found
        return Session(gpu, found, onnx.load(model) if isinstance(model, str) else onnx.load_from_string(model))

    def empty(shape: Sequence[int], dtype: Any, kind: str, _: int) -> Value:
        assert kind == "cuda"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return Value(gpu, gpu.allocate(size), size)

    def filled(data: np.ndarray, kind: str, number: int) -> Value:
        value = empty(data.shape, data.dtype, kind, number)
        value.update_inplace(data)
        return value

    patch.setattr(onnxruntime, "InferenceSession", session)
    patch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    patch.setattr(onnxruntime, "preload_dlls", lambda: None)
    patch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", empty)
    patch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", filled)
    return gpu


def twice(crossings: Sequence[Bytes]) -> int:
    """How many bytes have crossed more than once."""
    seen: set[int] = set()
    again = 0
    for address, size in crossings:
        found = range(address, address + size)
        again += len(seen.intersection(found))
        seen.update(found)
    return again
