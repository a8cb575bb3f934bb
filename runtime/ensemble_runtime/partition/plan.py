"""Where every tensor of a program is at one shape of its inputs, and the bindings that read and write there.

All of it is made once for each shape: to compute another batch, nothing is allocated, looked up or bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ensemble_runtime.partition.beside import At, Part, Step, words
from ensemble_runtime.partition.gates import LINE
from ensemble_runtime.partition.graph import Graph, Placement
from ensemble_runtime.partition.runs import Program, Run, root
from ensemble_runtime.partition.second import SharedMemory
from ensemble_runtime.partition.sessions import call
from ensemble_runtime.partition.shapes import Found

Array = NDArray[Any]


@dataclass(frozen=True)
class Bound:
    """A program with its tensors in place."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    steps: tuple[Step, ...]
    """What the first device does."""
    parts: tuple[Part, ...]
    """What the second one does."""
    memory: Memory
    """Kept for as long as bindings point there."""
    plan: int | None = None
    """The number under which the second device knows it; None where that has nothing to do."""


class Memory:
    """The buffers of a program's tensors, and a gate for each of its runs.

    A tensor that only a GPU writes and reads is there; every other is in memory that both processes share, where
    ONNX Runtime fetches what a run on a GPU reads and leaves what it writes.
    """

    def __init__(
        self, found: Mapping[str, Found], program: Program, on_gpu: set[str], own: Mapping[str, Array]
    ) -> None:
        """Allocate.

        Args:
            found: Datatype and shape of each tensor.
            program: Says which tensors are parts of others.
            on_gpu: Tensors that only a GPU writes and reads.
            own: Tensors whose elements are known.
        """
        self._found = found
        self._program = program
        self._gpu: dict[str, Any] = {}
        self._at: dict[str, int] = {}
        self.gate_bytes = size = LINE * len(program.runs)
        for name in found:
            if root(program.views, name) != name:
                continue
            if name in on_gpu and name not in own:
                self._gpu[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    list(found[name].shape), np.dtype(found[name].datatype), "cuda", 0
                )
            else:
                self._at[name] = size
                size += -(-self._bytes(name) // LINE) * LINE
        self.shared = SharedMemory(size)
        self._buffer = np.frombuffer(self.shared.map, np.uint8)
        for name, array in own.items():
            if name in self._at:
                self.array(name)[...] = array

    @cached_property
    def gates(self) -> memoryview:
        """By run."""
        return words(self.shared.map, self.gate_bytes)

    def array(self, name: str) -> Array:
        """A tensor of the host's memory, as a view of its buffer."""
        at = self._found[name]
        start = self._at[root(self._program.views, name)] + self._offset(name)
        return self._buffer[start : start + self._bytes(name)].view(at.datatype).reshape(at.shape)

    def bind(self, name: str) -> tuple[str, int, Any, tuple[int, ...], int]:
        """What an I/O binding wants to know: place, its number, element type, shape, address."""
        at, base = self._found[name], root(self._program.views, name)
        if base in self._gpu:
            return "cuda", 0, np.dtype(at.datatype), at.shape, self._gpu[base].data_ptr() + self._offset(name)
        return "cpu", 0, np.dtype(at.datatype), at.shape, self._buffer.ctypes.data + self._at[base] + self._offset(name)

    def at(self, name: str, called: str) -> At:
        """The same for another process, whose session has a name of its own for it."""
        at, base = self._found[name], root(self._program.views, name)
        return At(called, at.datatype, at.shape, self._at[base] + self._offset(name))

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
"""Of each run its session, or its number in the second device's process, and what that calls the graph's tensors."""


def bound(graph: Graph, program: Program, sessions: Sessions, memory: Memory) -> Bound:
    """Bind a program's runs to its tensors."""
    steps, parts = [], []
    for i, (run, (session, names)) in enumerate(zip(program.runs, sessions, strict=True)):
        tell = i if run.feeds else None
        if run.device == 0:
            steps.append(Step(run.waits, computation(session, run, names, memory), tell))
        else:
            inputs, outputs = (tuple(memory.at(x, names[x]) for x in found) for found in (run.inputs, run.outputs))
            parts.append(Part(run.waits, session, inputs, outputs, tell))
    return Bound(
        inputs=tuple(_input(program, memory, name) for name in graph.inputs),
        outputs=tuple(memory.array(name) for name in graph.outputs),
        steps=tuple(steps),
        parts=tuple(parts),
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


def computation(session: Any, run: Run, names: Mapping[str, str], memory: Memory) -> Callable[[], None]:
    """A session bound to a run's tensors, ready to compute.

    Args:
        session: Of the run's operators.
        run: Which tensors.
        names: What the session calls them.
        memory: Where they are.
    """
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *memory.bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *memory.bind(name))
    return call(session, binding)
