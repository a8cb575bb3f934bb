"""The rows of one request, and the views of its tensors in the arena."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.disagreement import SIGNALS
from ensemble_runtime.pipeline.port import Outcome
from ensemble_runtime.pipeline.prediction import packed

Array = NDArray[np.generic]

FILLING, WAITING, ENDED = range(3)
"""States of a lease."""


class RowLease:
    """The rows of one request; see `port.Lease`."""

    __slots__ = (
        "_tensors",
        "answered",
        "asked",
        "base",
        "done",
        "generation",
        "released",
        "rows",
        "settled",
        "shapes",
        "slot",
        "state",
    )

    def __init__(self, tensors: Tensors, slot: int, base: int, rows: int, shapes: Sequence[tuple[int, ...]]) -> None:
        self._tensors = tensors
        self.slot = slot
        self.base = base
        self.rows = rows
        self.shapes = shapes
        self.generation = 0
        """Its place among all that were sent; 0: not yet."""
        self.state = FILLING
        self.answered = False
        """Whether it was answered, and there are shadows to compare with the answer."""
        self.asked: list[int] | None = None
        """The members that it goes to, where it does not go to all."""
        self.done: Callable[[Outcome], None] | None = None
        self.released = False
        self.settled = True
        """Whether no cell can touch the rows any more."""

    def input(self, index: int) -> memoryview:
        """See `port.Lease.input`."""
        return self._tensors.input(self, index)

    def output(self, index: int) -> NDArray[np.generic]:
        """See `port.Lease.output`."""
        return self._tensors.output(self, index)

    def member_output(self, member: str, index: int) -> NDArray[np.generic]:
        """See `port.Lease.member_output`."""
        return self._tensors.member_output(self, member, index)

    def disagreement(self) -> dict[str, NDArray[np.float32]]:
        """See `port.Lease.disagreement`."""
        return self._tensors.disagreement(self)


class Tensors:
    """Finds the tensors of leases in the arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._config = config = arena.config
        self._names = [member.name for member in config.members]
        row_bytes = [spec.row_bytes if spec.fixed else 0 for spec in config.inputs]
        self._inputs = list(zip(arena.inputs, arena.geometry.input_strides, row_bytes, strict=True))
        self._fixed_outputs = [arena.output_rows(o) if spec.fixed else None for o, spec in enumerate(config.outputs)]

    def input(self, lease: RowLease, index: int) -> memoryview:
        """Writable bytes of a leased input."""
        area, stride, row_bytes = self._inputs[index]
        if not row_bytes:
            row_bytes = math.prod(lease.shapes[index]) * self._config.inputs[index].datatype.itemsize
        begin = lease.base * stride
        return area[begin : begin + lease.rows * row_bytes]

    def output(self, lease: RowLease, index: int) -> NDArray[np.generic]:
        """The combined output of a lease."""
        table = self._fixed_outputs[index]
        if table is not None:
            return table[lease.base : lease.base + lease.rows]
        member = int(np.argmax(self._arena.used[lease.slot]))
        return self._variable(self._arena.outputs[index], lease, member, index)

    def member_output(self, lease: RowLease, member: str, index: int) -> NDArray[np.generic]:
        """A member's own output of a lease."""
        m = self._names.index(member)
        return self._variable(self._arena.member_outputs[m][index], lease, m, index)

    def disagreement(self, lease: RowLease) -> dict[str, NDArray[np.float32]]:
        """The disagreement of a lease's rows."""
        rows = self._arena.disagreement[lease.base : lease.base + lease.rows]
        return {name: rows[:, i] for i, name in enumerate(SIGNALS)}

    def _variable(self, area: memoryview, lease: RowLease, member: int, index: int) -> NDArray[Any]:
        spec = self._config.outputs[index]
        shape = spec.shape
        if not spec.fixed:
            shape = tuple(self._arena.output_shapes[lease.slot, member, index, : len(shape)].tolist())
        stride = self._arena.geometry.output_strides[index]
        return packed(area, stride, spec.datatype.numpy, shape, lease.base, lease.base, lease.rows)
