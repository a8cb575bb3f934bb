"""An ONNX Runtime with a CUDA device that is not there: its memory is kept apart, what it computes a core does, later.

The driver below it is a library that the tests compile (`stub_cuda.c`), under the real bindings: what is queued is done
late, in the order of its stream, so that whoever does not wait for it finds what was there before. ONNX Runtime behaves
as the real one where a partition depends on it, which is told by its sources:

- `core/session/IOBinding.cc`: an input is copied, when it is bound, to the device whose operator reads it, unless it
  is there. Only what is bound where it is read is read anew by every run.
- `core/providers/cuda/cuda_execution_provider.cc`, `user_compute_stream`: runs are queued in that stream, and nothing
  waits for it.
- `core/providers/cuda/rnn/cudnn_rnn_base.cc`: weights of recurrent operators are there twice, and the lengths of their
  rows go up in every run, from memory that is given back behind the next run that is to be awaited: all are but those
  whose options say `disable_synchronize_execution_providers`.
- `core/providers/cuda/cuda_stream_handle.cc`: a session that is closed before aborts the process.
- What an operator on the host makes within a run is copied from memory that the session's next run uses again.
- Lengths, shapes and the like are read on the host, when the run is queued, by operators that compute on the GPU.

Memory of the device begins as NaN, and whatever is read of the host's as if it were the device's, or the other way
round, is an error.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.devices import cuda

READ_ON_HOST = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "GRU": (4,),
    "LSTM": (4,),
    "RNN": (4,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
}
"""Inputs, by operator."""

DEVICE = Device(name="gpu0", kind=DeviceKind.GPU, type="absent", memory_bytes=2**30, uuid="GPU-0")

LATE = 0.0002
"""Seconds that a run waits before it computes."""

Bytes = tuple[int, int]
"""Address and size."""

Queued = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Crossed(ctypes.Structure):
    """A copy."""

    _fields_ = (
        ("device", ctypes.c_uint64),
        ("host", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("down", ctypes.c_int),
        ("pinned", ctypes.c_int),
    )


def at(address: int, size: int) -> np.ndarray:
    if not size:
        return np.zeros(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


class AbsentGpu:
    """The device's memory, and what has crossed."""

    def __init__(self, library: Path) -> None:
        self.stub = ctypes.CDLL(str(library))
        self.stub.stub_owns.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self.stub.stub_copy.restype = Crossed
        self.stub.stub_limit.argtypes = self.stub.stub_take.argtypes = self.stub.stub_give.argtypes = (ctypes.c_size_t,)
        self.stub.stub_held.restype = self.stub.stub_most_held.restype = ctypes.c_size_t
        self.stub.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, Queued, ctypes.c_void_p)
        self.stub.cuStreamSynchronize.argtypes = (ctypes.c_void_p,)
        self.odd: list[Bytes] = []
        """Tensors that runs were bound to, and that do not begin as ONNX Runtime's own do."""
        self.awaited = 0
        """Runs that were to be."""
        self.starts = True
        """Whether CUDA does; where it does not, ONNX Runtime warns and goes on without it."""
        self.refuses: Exception | None = None
        """What the provider's constructor raises."""
        self.host_only: set[str] = set()
        """Kinds of operators that only the host computes, within a run of the device."""
        self.at_once = False
        """Whether a run computes when it is queued, and so fails there if it does."""
        self.fails = False
        """Whether such a run does."""
        self.failures: list[BaseException] = []
        self.left = 0
        """The most that a session had to give back so far, in runs."""
        self.aborts = 0
        """So often a session was closed that had."""
        self.lost = False
        self.stray = 0
        """Runs on memory that somebody had given back, or whose host wrote where a copy had not been made."""
        self.queued = 0
        """Runs so far."""
        self.kept: list[Any] = []
        """What is queued."""
        self._free = threading.Event()
        self._free.set()

    def clear(self) -> None:
        self.stub.stub_forget_copies()

    @property
    def crossed(self) -> Iterator[Crossed]:
        return (self.stub.stub_copy(i) for i in range(self.stub.stub_copies()))

    @property
    def up(self) -> list[Bytes]:
        """Where to on the device."""
        return [(x.device, x.size) for x in self.crossed if not x.down]

    @property
    def down(self) -> list[Bytes]:
        """Where from on the device."""
        return [(x.device, x.size) for x in self.crossed if x.down]

    @property
    def held(self) -> int:
        """Bytes that are taken, weights included."""
        return int(self.stub.stub_held())

    @property
    def most_held(self) -> int:
        """At once, so far."""
        return int(self.stub.stub_most_held())

    def limit(self, size: int) -> None:
        """Have so many bytes of memory."""
        self.stub.stub_limit(size)

    @property
    def pinned(self) -> int:
        """Pieces of the host's memory."""
        return int(self.stub.stub_pinned())

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Have runs wait before they compute, until `let_go`."""
        self._free.clear()
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        self._free.set()

    def free(self) -> None:
        """Wait until no run is held up."""
        self._free.wait()

    def check(self, kind: str, address: int, size: int) -> None:
        owned = bool(self.stub.stub_owns(address, size))
        assert owned == (kind == "cuda"), f"{size} bytes are not in the memory of {kind}"

    def lose(self) -> None:
        """Fail as a device does whose code reads where nothing is."""
        self.lost = True
        self.stub.stub_break()

    def closed(self, leaves: list[int]) -> None:
        """A session is, which leaves something from so many runs."""
        self.aborts += bool(leaves)


class Binding:
    def __init__(self, gpu: AbsentGpu, session: Session) -> None:
        self._gpu, self._on_host = gpu, session.on_host
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.there: list[Bytes] = []
        """Where these are, of the device's memory."""

    @property
    def _iobinding(self) -> Binding:
        return self

    def bind_input(self, name: str, kind: str, _: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        array = self._tensor(kind, dtype, shape, address)
        wanted = "cpu" if name in self._on_host else "cuda"
        self.inputs[name] = array if kind == wanted else array.copy()

    def bind_output(self, name: str, kind: str, _: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        assert address
        assert kind == "cuda", "an output on the host would be copied there by the run, which nobody waits for"
        self.outputs[name] = self._tensor(kind, dtype, shape, address)

    def _tensor(self, kind: str, dtype: Any, shape: Sequence[int], address: int) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._gpu.check(kind, address, size)
        if kind == "cuda":
            self.there.append((address, size))
            if address % 16:
                self._gpu.odd.append((address, size))
        return at(address, size).view(dtype).reshape(shape)


@dataclass
class Work:
    """What a session has the device do: not the session itself, which may be closed before that is done."""

    gpu: AbsentGpu
    real: Any
    under_way: int = 0
    left: list[int] = field(default_factory=list)
    """The runs that have left something to be given back."""

    def compute(self, binding: Binding, given: dict[str, np.ndarray], awaited: bool) -> None:
        time.sleep(LATE)
        if self.gpu.at_once and self.gpu.fails:
            raise RuntimeError("this run fails")
        self.gpu.free()
        answers = self.real.run(list(binding.outputs), given)
        for answer, array in zip(answers, binding.outputs.values(), strict=True):
            array[...] = answer
        self.under_way -= 1
        if awaited:
            self.left.clear()

    def queue(self, compute: Callable[[], None], stream: int) -> None:
        def work(_: object) -> None:
            try:
                compute()
            except Exception as error:
                self.gpu.failures.append(error)
                self.gpu.lose()

        self.gpu.kept.append(Queued(work))  # the library only has its address
        assert self.gpu.stub.cuLaunchHostFunc(stream, self.gpu.kept[-1], None) in {0, 700}


class Session:
    """On the device that is not there."""

    def __init__(self, gpu: AbsentGpu, real: Any, model: onnx.ModelProto, stream: int | None, recorded: bool) -> None:
        self._gpu, self._stream, self._recorded, self._work = gpu, stream, recorded, Work(gpu, real)
        self._op_types = {node.op_type for node in model.graph.node}
        readers: dict[str, list[bool]] = {}
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                readers.setdefault(name, []).append(i in READ_ON_HOST.get(node.op_type, ()))
        self.on_host = {name for name, places in readers.items() if all(places)}
        for name in ("get_inputs", "get_outputs", "run"):
            setattr(self, name, getattr(real, name))
        cached = {x for node in model.graph.node if node.op_type in {"GRU", "LSTM", "RNN"} for x in node.input[1:4]}
        weights = sum(x.ByteSize() * (1 + (x.name in cached)) for x in model.graph.initializer)
        gc.collect()  # what nobody has any more is given back
        if not gpu.stub.stub_take(weights):
            raise RuntimeError(f"Failed to allocate memory for requested buffer of size {weights}")
        weakref.finalize(self, gpu.stub.stub_give, weights)
        self._recurrent = bool(cached)
        weakref.finalize(self, gpu.closed, self._work.left)

    @property
    def _sess(self) -> Session:
        return self

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_input_memory_infos(self) -> list[SimpleNamespace]:
        inputs = self._work.real.get_inputs()
        return [SimpleNamespace(name="Cpu" if x.name in self.on_host else "Cuda") for x in inputs]

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        assert self._recorded, "it is only told where it was asked for when the session was opened"
        there = [SimpleNamespace(ep_name="CUDAExecutionProvider")]
        here = [SimpleNamespace(ep_name="CPUExecutionProvider")]
        return there + (here if self._gpu.host_only & self._op_types else [])

    def io_binding(self) -> Binding:
        return Binding(self._gpu, self)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert self._stream is not None, "a run whose stream is not known cannot be waited for"
        gpu, work = self._gpu, self._work
        gpu.queued += 1
        reused = work.under_way and gpu.host_only & self._op_types
        gpu.stray += bool(reused) or not all(gpu.stub.stub_owns(*there) for there in binding.there)
        if self._recurrent:
            work.left.append(gpu.queued)
        gpu.left = max(gpu.left, len(work.left))
        given = {name: x.copy() if name in self.on_host else x for name, x in binding.inputs.items()}
        awaited = not on(options.get_run_config_entry, "disable_synchronize_execution_providers")
        gpu.awaited += awaited
        work.under_way += 1
        if gpu.at_once:
            gpu.stub.cuStreamSynchronize(self._stream)
            try:
                work.compute(binding, given, awaited)
            finally:
                if awaited:
                    work.left.clear()
            return
        work.queue(partial(work.compute, binding, given, awaited), self._stream)


def on(entry: Callable[[str], str], key: str) -> bool:
    try:
        return entry(key) == "1"
    except RuntimeError:  # it is not set
        return False


def install(patch: pytest.MonkeyPatch, library: Path) -> AbsentGpu:
    """Put the device into this process's ONNX Runtime, with the driver in the library."""
    gpu = AbsentGpu(library)
    real = onnxruntime.InferenceSession

    def session(model: Any, options: Any = None, providers: Sequence[Any] = (), **more: Any) -> Any:
        found = real(model, options, providers=["CPUExecutionProvider"])
        of_cuda = [provider[1] for provider in providers if provider[0] == "CUDAExecutionProvider"]
        if not of_cuda:
            return found
        assert more == {"enable_fallback": 0}, "it would try again without CUDA, and tell so on standard output"
        if gpu.refuses is not None:
            raise gpu.refuses
        if not gpu.starts:
            return found
        stream = of_cuda[0].get("user_compute_stream")
        parsed = onnx.load(model) if isinstance(model, str) else onnx.load_from_string(model)
        told = on(options.get_session_config_entry, "session.record_ep_graph_assignment_info")
        return Session(gpu, found, parsed, None if stream is None else int(stream), told)

    patch.setattr(cuda, "LIBRARY", str(library))
    patch.setattr(onnxruntime, "InferenceSession", session)
    patch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    patch.setattr(onnxruntime, "preload_dlls", lambda: None)
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


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    last = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.001)
