"""Where every tensor of a program is at one shape of its inputs, and the bindings that read and write there.

All of it is made once for each shape: to compute another batch, nothing is allocated, looked up or bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ensemble_runtime.partition.gates import Gate
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.runs import Program, Run, root
from ensemble_runtime.partition.shapes import Found

Array = NDArray[Any]
_ALIGNMENT = 64


@dataclass(frozen=True)
class Step:
    """One run at work: what it waits for, what it computes, whom it tells."""

    wait: Callable[[], object] | None
    compute: Callable[[Any], None]
    binding: Any
    tell: Callable[[], None] | None


Work = Callable[[], BaseException | None]


@dataclass(frozen=True)
class Bound:
    """A program with its tensors in place."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    work: tuple[Work, Work]
    """What each device does."""
    memory: Memory
    """Kept for as long as bindings point there."""


class Memory:
    """The buffers of a program's tensors.

    A tensor that only a GPU writes and reads is there; every other is in the host's memory, where ONNX Runtime fetches
    what a run on a GPU reads and leaves what it writes.
    """

    def __init__(
        self, found: Mapping[str, Found], program: Program, on_gpu: set[str], own: Mapping[str, Array]
    ) -> None:
        """Allocate.

        Args:
            found: Datatype and shape of each tensor.
            program: Says which tensors are parts of others.
            on_gpu: Tensors that only a GPU writes and reads.
            own: Tensors that exist already.
        """
        self._found = found
        self._program = program
        self._host = {name: np.ascontiguousarray(array) for name, array in own.items()}
        self._gpu: dict[str, Any] = {}
        for name in found:
            if root(program.views, name) != name or name in self._host:
                continue
            if name in on_gpu:
                self._gpu[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    list(found[name].shape), np.dtype(found[name].datatype), "cuda", 0
                )
            else:
                self._host[name] = _aligned(self._bytes(name))

    def array(self, name: str) -> Array:
        """A tensor of the host's memory, as a view of its buffer."""
        at = self._found[name]
        buffer = self._host[root(self._program.views, name)].reshape(-1).view(np.uint8)
        offset = self._offset(name)
        return buffer[offset : offset + self._bytes(name)].view(at.datatype).reshape(at.shape)

    def bind(self, name: str) -> tuple[str, int, Any, tuple[int, ...], int]:
        """What an I/O binding wants to know: place, its number, element type, shape, address."""
        at, base = self._found[name], root(self._program.views, name)
        if base in self._gpu:
            return "cuda", 0, np.dtype(at.datatype), at.shape, self._gpu[base].data_ptr() + self._offset(name)
        return "cpu", 0, np.dtype(at.datatype), at.shape, self._host[base].ctypes.data + self._offset(name)

    def _offset(self, name: str) -> int:
        views, offset = self._program.views, 0
        while name in views:
            offset += sum(self._bytes(before) for before in views[name].before)
            name = views[name].of
        return offset

    def _bytes(self, name: str) -> int:
        at = self._found[name]
        return math.prod(at.shape) * np.dtype(at.datatype).itemsize


Sessions = Sequence[tuple[Any, Mapping[str, str]]]
"""Of each run its session, and the session's names of the graph's tensors."""


def bound(graph: Graph, program: Program, sessions: Sessions, memory: Memory) -> Bound:
    """Bind a program's runs to its tensors."""
    gates = {i: Gate() for i, run in enumerate(program.runs) if run.feeds}
    steps: tuple[list[Step], list[Step]] = ([], [])
    for i, (run, (session, names)) in enumerate(zip(program.runs, sessions, strict=True)):
        wait = gates[run.waits].acquire if run.waits is not None else None
        tell = gates[i].release if run.feeds else None
        steps[run.device].append(Step(wait, session.run_with_iobinding, _binding(session, run, names, memory), tell))
    return Bound(
        inputs=tuple(_input(program, memory, name) for name in graph.inputs),
        outputs=tuple(memory.array(name) for name in graph.outputs),
        work=(partial(_walk, tuple(steps[0])), partial(_walk, tuple(steps[1]))),
        memory=memory,
    )


def on_gpu(graph: Graph, placement: Placement, program: Program, gpus: set[int]) -> set[str]:
    """The tensors that only GPUs write and read, by their buffers."""
    touched: dict[str, set[int]] = {}
    for run in program.runs:
        for name in (*run.inputs, *run.outputs):
            touched.setdefault(root(program.views, name), set()).add(run.device)
    given = (program.turned[name].name if name in program.turned else name for name in graph.inputs)
    outside = {root(program.views, name) for name in (*given, *graph.outputs)}
    static = {y for name in program.prelude for y in graph.by_name[name].outputs}
    return {name for name, by in touched.items() if len(by) == 1 and by <= gpus and name not in outside | static}


def _input(program: Program, memory: Memory, name: str) -> Array:
    """Where an input is copied to, in its own order of axes."""
    turned = program.turned.get(name)
    if turned is None:
        return memory.array(name)
    return memory.array(turned.name).transpose(np.argsort(turned.axes))


def _binding(session: Any, run: Run, names: Mapping[str, str], memory: Memory) -> Any:
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *memory.bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *memory.bind(name))
    return binding


def _walk(steps: Sequence[Step]) -> BaseException | None:
    """Compute one device's runs in order; after a failure only wait and tell, so that the other device gets through."""
    failure: BaseException | None = None
    for step in steps:
        if step.wait is not None:
            step.wait()
        if failure is None:
            try:
                step.compute(step.binding)
            except Exception as error:
                failure = error
        if step.tell is not None:
            step.tell()
    return failure


def _aligned(size: int) -> Array:
    buffer = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size]
