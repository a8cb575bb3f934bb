"""The arena's rows as a remote's process reads and writes them: any member's, in batches of many requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.intake import Entries
from ensemble_runtime.pipeline.prediction import alike, packed, rows_of

Array = NDArray[Any]


class RowDesk:
    """Takes batches out of the inputs and puts members' outputs in."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._config = config = arena.config
        self._fixed_inputs = all(spec.fixed for spec in config.inputs)
        self._fixed_outputs = all(spec.fixed for spec in config.outputs)
        if self._fixed_inputs:
            self._input_rows = [arena.input_rows(i) for i in range(len(config.inputs))]
        if self._fixed_outputs:
            outputs = range(len(config.outputs))
            self._output_rows = [[arena.member_rows(m, o) for o in outputs] for m in range(len(config.members))]
            self._partial_rows = {m: [arena.partial_rows(m, o) for o in outputs] for m in arena.partials}

    def alike(self, entries: Entries) -> Iterator[Entries]:
        """Entries whose inputs have the same shapes: only those fit into one batch."""
        return alike(self._arena, entries, fixed=self._fixed_inputs)

    def shapes(self, batch: Entries) -> list[tuple[int, ...]]:
        """Of a batch's inputs, without the batch axis."""
        if self._fixed_inputs:
            return [spec.shape for spec in self._config.inputs]
        found = self._arena.input_shapes[batch[0, 0]]
        return [tuple(found[i, : len(spec.shape)].tolist()) for i, spec in enumerate(self._config.inputs)]

    def gather(self, batch: Entries) -> list[memoryview]:
        """A batch's input bytes, input by input; a run of rows is a view of the arena, not a copy."""
        if self._fixed_inputs:
            rows = rows_of(batch)
            return [np.ascontiguousarray(table[rows]).data.cast("B") for table in self._input_rows]
        arena, parts = self._arena, []
        for i, (spec, shape) in enumerate(zip(self._config.inputs, self.shapes(batch), strict=True)):
            stride = arena.geometry.input_strides[i]
            for base, first, count in self._spans(batch):
                rows_ = packed(arena.inputs[i], stride, spec.datatype.numpy, shape, base, first, count)
                parts.append(rows_.data.cast("B"))
        return parts

    def put(self, member: int, batch: Entries, outputs: Sequence[Array]) -> NDArray[np.bool_]:
        """Write a member's rows; returns which entries do not fit the shape that the rest of their request came in."""
        misfits = np.zeros(len(batch), np.bool_)
        if self._fixed_outputs:
            rows = rows_of(batch)
            for table, values in zip(self._output_rows[member], outputs, strict=True):
                table[rows] = values
            return misfits
        arena = self._arena
        for o, (spec, values) in enumerate(zip(self._config.outputs, outputs, strict=True)):
            area, stride = arena.member_outputs[member][o], arena.geometry.output_strides[o]
            start = 0
            for i, (base, first, count) in enumerate(self._spans(batch)):
                shape = arena.output_shapes[batch[i, 0], member, o, : len(spec.shape)]
                if shape.any() and tuple(shape.tolist()) != values.shape[1:]:
                    misfits[i] = True
                else:
                    shape[...] = values.shape[1:]
                    place = packed(area, stride, spec.datatype.numpy, values.shape[1:], base, first, count)
                    place[...] = values[start : start + count]
                start += count
        return misfits

    def put_partial(self, members: Sequence[int], batch: Entries, sums: Sequence[Array], nothing: float) -> None:
        """Write what a shard has folded: the first of the members brings it, the others bring nothing."""
        rows = rows_of(batch)
        for place, member in enumerate(members):
            for o, values in enumerate(sums):
                self._partial_rows[member][o][rows] = nothing if place else values

    def _spans(self, batch: Entries) -> list[tuple[int, int, int]]:
        """(first row of the request, first row of the entry, rows) of each entry."""
        bases = self._arena.base[batch[:, 0]].tolist()
        return list(zip(bases, batch[:, 1].tolist(), batch[:, 2].tolist(), strict=True))
