"""Runs on a GPU: its own memory, and ONNX Runtime bound to it.

Every copy here blocks, and so does every run: when a call returns, its tensors are where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.partition.crossings import GPU, Crossings, Visit, crossings
from ensemble_runtime.partition.memory import Memory, Place, Span
from ensemble_runtime.partition.runs import Run
from ensemble_runtime.partition.sessions import call

Sessions = Sequence[tuple[Any, Mapping[str, str]]]
"""Of each run its session, and what that calls the graph's tensors."""

Copy = tuple[Any, NDArray[np.uint8]]
"""A part of the GPU's memory, and its place in the host's."""


@dataclass(frozen=True)
class Computation:
    """A run on a GPU, with what crosses because of it."""

    up: tuple[Copy, ...]
    run: Callable[[], None]
    down: tuple[Copy, ...]
    memory: GpuMemory
    """Kept for as long as something is bound to it."""

    def __call__(self) -> None:
        """Compute."""
        for there, here in self.up:
            there.update_inplace(here)
        self.run()
        for there, here in self.down:
            here[...] = there.numpy()


class Arena:
    """A GPU's memory for a program at several shapes, of which only one is computed at a time."""

    def __init__(self) -> None:
        """Empty."""
        self._size = 0
        self._value: Any = None

    def room(self, size: int) -> Any:
        """So many bytes, undefined, for any shape; the first is best the largest."""
        if self._value is None or size > self._size:
            self._size, self._value = size, allocated(size)
        return self._value


class GpuMemory:
    """The buffers that runs on a GPU read and write."""

    def __init__(self, host: Memory, found: Crossings, arena: Arena) -> None:
        """Allocate; what is in there is undefined.

        Args:
            host: The same buffers in the host's memory.
            found: Which bytes need a place, and which of them never change.
            arena: For all that does.
        """
        self._host = host
        fixed = {span.buffer for span in found.once}
        shared = [place for place in found.places if place.buffer not in fixed]
        starts = [0, *accumulate(-(-place.size // _ALIGNED) * _ALIGNED for place in shared)]
        self._common = arena.room(starts[-1])
        self._own = [(place, allocated(place.size)) for place in found.places if place.buffer in fixed]
        common = int(self._common.data_ptr())
        self._at: dict[str, list[tuple[Span, int]]] = {}
        for place, address in (
            *((place, common + start) for place, start in zip(shared, starts, strict=False)),
            *((place, int(value.data_ptr())) for place, value in self._own),
        ):
            self._at.setdefault(place.buffer, []).append((place, address))

    def bind(self, name: str) -> Place:
        """A tensor for an I/O binding."""
        return self._host.bind(name, self._address(self._host.span(name)))

    def copies(self, session: Any, spans: Iterable[Span]) -> tuple[Copy, ...]:
        """Parts of this memory with their places in the host's.

        Args:
            session: Any on this GPU.
            spans: Which.
        """
        return tuple((window(session, self._address(s), s.size), self._host.bytes(s)) for s in spans)

    def _address(self, span: Span) -> int:
        here = self._at[span.buffer]
        place, address = next((x for x in here if x[0].start <= span.start and span.stop <= x[0].stop), here[0])
        return address + span.start - place.start


_ALIGNED = 256
"""Bytes; as CUDA aligns what it allocates."""


def allocated(size: int) -> Any:
    """So many bytes of a GPU's memory as a value of ONNX Runtime, undefined."""
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type([max(1, size)], np.uint8, "cuda", 0)


def window(session: Any, address: int, size: int) -> Any:
    """Some bytes of a GPU's memory as a value of ONNX Runtime, which makes one of an address only where it binds it."""
    binding = session.io_binding()
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0, np.uint8, (size,), address)
    return binding.get_outputs()[0]


def on_gpu(
    runs: Sequence[Run],
    sessions: Sessions,
    memory: Memory,
    arena: Arena,
    given: Iterable[str],
    taken: Iterable[str],
) -> dict[int, Computation]:
    """Bind the runs on a GPU, ready to compute, and copy there what never changes.

    Args:
        runs: All of a program's; those of the other device are only looked at.
        sessions: Of each.
        memory: The host's.
        arena: The GPU's.
        given: As of `crossings`.
        taken: As of `crossings`.

    Returns:
        By run.

    Raises:
        ModelInvalidError: ONNX Runtime does not bind them, or does not tell where an input is read.
        OutOfMemoryError: There is no room for them.
    """
    try:
        return _bound(runs, sessions, memory, arena, given, taken)
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise failure(error, f"cannot be bound to a GPU: {first_line(error)}") from error


def _bound(
    runs: Sequence[Run],
    sessions: Sessions,
    memory: Memory,
    arena: Arena,
    given: Iterable[str],
    taken: Iterable[str],
) -> dict[int, Computation]:
    own = [i for i, run in enumerate(runs) if run.device == GPU]
    found = crossings(runs, memory.span, {i: _on_host(runs[i], *sessions[i]) for i in own}, given, taken)
    gpu = GpuMemory(memory, found, arena)
    if own:
        for there, here in gpu.copies(sessions[own[0]][0], found.once):
            there.update_inplace(here)
    return {i: _computation(runs[i], *sessions[i], memory, gpu, found.visits[i]) for i in own}


def _computation(
    run: Run, session: Any, names: Mapping[str, str], memory: Memory, gpu: GpuMemory, visit: Visit
) -> Computation:
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *(gpu if name in visit.there else memory).bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *(gpu if name in visit.there else memory).bind(name))
    return Computation(gpu.copies(session, visit.up), call(session, binding), gpu.copies(session, visit.down), gpu)


def _on_host(run: Run, session: Any, names: Mapping[str, str]) -> frozenset[str]:
    """The inputs of a run that its session wants in the host's memory, as some operators want shapes and lengths."""
    if not hasattr(session, "get_input_memory_infos"):
        raise LookupError("this ONNX Runtime does not tell where inputs are read; take onnxruntime-gpu 1.27 or newer")
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    there = {x.name for x, place in places if place.name == "Cpu"}
    return frozenset(name for name in run.inputs if names[name] in there)
