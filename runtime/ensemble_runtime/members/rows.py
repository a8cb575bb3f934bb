"""A batch's way through a model, from rows to rows: what a cell does with it, and what a profile measures."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import TensorSpec
from ensemble_runtime.members.checks import bad_rows, check_outputs, random_rows, warm_up
from ensemble_runtime.members.model import Array, Model

Rows = slice | list[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Passage:
    """A model between the table that its rows stand in and the table that its answers go to; all shapes are fixed."""

    member: str
    model: Model
    inputs: Sequence[Array]
    """(rows, *shape) of each input."""
    outputs: Sequence[Array]
    """The same of each output."""
    specs: Sequence[TensorSpec]
    """Of the outputs."""

    def compute(self, rows: Rows) -> NDArray[np.bool_] | None:
        """Gather rows (adjacent ones are read in place), compute and check them, and write the answers.

        Returns:
            Which rows hold a NaN or an infinity; None if none does.

        Raises:
            Exception: whatever the model raises; ModelInvalidError where its answers have another shape or datatype.
        """
        inputs = [table[rows] for table in self.inputs]
        answers = self.model.predict(inputs)
        check_outputs(self.member, answers, self.specs, len(inputs[0]))
        for table, values in zip(self.outputs, answers, strict=True):
            table[rows] = values
        return bad_rows(answers)


class MadeUpRows:
    """A member and made-up rows for it, with which it computes as its cell does.

    The rows stand in memory that is shared, as the arena's are: it is not counted as the cell's. Rows of a batch are
    not adjacent, as those of many small requests are not. Variable dimensions have their maximum length.
    """

    def __init__(
        self, member: str, model: Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], largest: int
    ) -> None:
        """`largest`: the largest batch that will be asked for."""
        self._inputs, self._outputs = inputs, outputs
        self._random = np.random.default_rng(0)
        self._made = 0
        self._passage = Passage(
            member,
            model,
            [_shared(spec, largest) for spec in inputs],
            [_shared(spec, largest) for spec in outputs],
            outputs,
        )

    def batch(self, size: int) -> Callable[[], object]:
        """What computes a batch of so many rows, warmed up for it."""
        passage = self._passage
        warm_up(passage.member, passage.model, self._inputs, self._outputs, size)
        for row in range(self._made, size):  # a row at a time: made-up rows take twice their room while they are made
            for table, spec in zip(passage.inputs, self._inputs, strict=True):
                table[row] = random_rows(spec, 1, spec.max_length, self._random)[0]
        self._made = max(self._made, size)
        rows: Rows = slice(0, 1) if size == 1 else self._random.permutation(size)

        def compute() -> object:
            return passage.compute(rows)

        for _ in range(2):
            compute()
        return compute


def _shared(spec: TensorSpec, rows: int) -> Array:
    """A table of so many rows in shared memory; pages that are never written take no room."""
    shape = [spec.max_length if dimension == -1 else dimension for dimension in spec.shape]
    memory = mmap.mmap(-1, max(1, rows * int(np.prod(shape)) * np.dtype(spec.datatype.numpy).itemsize))
    table: Array = np.frombuffer(memory, spec.datatype.numpy, rows * int(np.prod(shape))).reshape(rows, *shape)
    return table
