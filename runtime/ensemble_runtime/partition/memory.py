"""Where every tensor of a program is in the host's memory, which both devices' processes share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.partition.beside import At
from ensemble_runtime.partition.gates import LINE, lines
from ensemble_runtime.partition.runs import Program, root
from ensemble_runtime.partition.second import SharedMemory
from ensemble_runtime.partition.shapes import Found

Array = NDArray[Any]

Place = tuple[str, int, Any, tuple[int, ...], int]
"""What an I/O binding wants to know: kind of device, its number, element type, shape, address."""


@dataclass(frozen=True)
class Span:
    """Some bytes of a buffer."""

    buffer: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


class Pool:
    """What the memories of one program at several shapes have in common, for only one of them is computed at a time."""

    def __init__(self) -> None:
        """Empty."""
        self._last: SharedMemory | None = None
        self._common = 0

    def room(self, common: int, own: int) -> SharedMemory:
        """Memory that begins with so many bytes for any shape, and ends with so many for one.

        The first shape is best the largest: a larger one cannot use what is there.
        """
        if self._last is None or common > self._common:
            self._last, self._common = SharedMemory(common + own), common
        else:
            self._last = SharedMemory(self._last.size + own, self._last)
        return self._last


class Memory:
    """The buffers of a program's tensors, and a gate for each of its runs.

    A buffer that only a GPU touches has its place here as well, but no page: the kernel gives one where something is
    written.
    """

    def __init__(
        self, found: Mapping[str, Found], program: Program, own: Mapping[str, Array], pool: Pool | None = None
    ) -> None:
        """Allocate.

        Args:
            found: Datatype and shape of each tensor.
            program: Says which tensors are parts of others.
            own: Tensors whose elements are known.
            pool: Of the same program at other shapes, of which none is computed meanwhile.
        """
        self._found = found
        self._program = program
        roots = [name for name in found if root(program.views, name) == name]
        sizes = {name: -(-self._bytes(name) // LINE) * LINE for name in roots}
        fixed = [name for name in roots if name in own]
        self._at: dict[str, int] = {}
        self.gate_bytes = size = LINE * len(program.runs)
        for name in roots:
            if name not in own:
                self._at[name] = size
                size += sizes[name]
        self.shared = (pool or Pool()).room(size, sum(sizes[name] for name in fixed))
        end = self.shared.size
        for name in reversed(fixed):
            self._at[name] = end = end - sizes[name]
        self._buffer = np.frombuffer(self.shared.map, np.uint8)
        for name, array in own.items():
            if name in self._at:
                self.array(name)[...] = array

    @cached_property
    def gates(self) -> memoryview:
        """By run."""
        return lines(self.shared.map, self.gate_bytes)

    def array(self, name: str) -> Array:
        """A tensor, as a view of its buffer."""
        at = self._found[name]
        return self.bytes(self.span(name)).view(at.datatype).reshape(at.shape)

    def bytes(self, span: Span) -> NDArray[np.uint8]:
        """Some bytes, as a view of their buffer."""
        base = self._at[span.buffer]
        return self._buffer[base + span.start : base + span.stop]

    def span(self, name: str) -> Span:
        """Which bytes a tensor is."""
        start = self._offset(name)
        return Span(root(self._program.views, name), start, start + self._bytes(name))

    def bind(self, name: str, address: int | None = None) -> Place:
        """A tensor for an I/O binding: here, or at an address of a GPU's memory."""
        at = self._found[name]
        if address is not None:
            return "cuda", 0, np.dtype(at.datatype), at.shape, address
        return "cpu", 0, np.dtype(at.datatype), at.shape, self.address(self.span(name))

    def address(self, span: Span) -> int:
        """Where some bytes begin."""
        return int(self._buffer.ctypes.data) + self._at[span.buffer] + span.start

    def at(self, name: str, called: str) -> At:
        """A tensor for another process, whose session has a name of its own for it."""
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
