from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ensemble_runtime.config import Datatype, TensorSpec
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.model import Array
from ensemble_runtime.members.rows import MadeUpRows, Passage

X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(2,))
Y = TensorSpec(name="y", datatype=Datatype.FP32, shape=(1,))


class Sum:
    """Adds up each row, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        self.seen.append(inputs[0].copy())
        return [inputs[0].sum(axis=1, keepdims=True)]


def passage(rows: Array) -> Passage:
    return Passage("m", Sum(), [rows], [np.zeros((len(rows), 1), np.float32)], [Y])


@pytest.mark.parametrize("chosen", [slice(1, 3), np.array([3, 0])])
def test_answers_land_where_their_rows_stand(chosen: slice | Array) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    through = passage(rows)
    assert through.compute(chosen) is None
    expected = np.zeros((4, 1), np.float32)
    expected[chosen] = rows[chosen].sum(axis=1, keepdims=True)
    assert np.array_equal(through.outputs[0], expected)


def test_rows_that_are_no_numbers_are_told() -> None:
    rows = np.ones((3, 2), np.float32)
    rows[2] = np.nan
    bad = passage(rows).compute(np.array([0, 2]))
    assert bad is not None and bad.tolist() == [False, True]


def test_answers_of_another_shape_are_refused() -> None:
    through = Passage("m", Sum(), [np.ones((3, 2), np.float32)], [np.zeros((3, 2), np.float32)], [X])
    with pytest.raises(ModelInvalidError, match="output 'x' has shape"):
        through.compute(slice(0, 2))


def test_a_made_up_batch_has_its_size_and_rows_of_its_own() -> None:
    model = Sum()
    made = MadeUpRows("m", model, [X], [Y], largest=8)
    for size in (8, 1, 4):
        compute = made.batch(size)
        model.seen.clear()
        compute()
        (seen,) = model.seen
        assert len(np.unique(seen, axis=0)) == len(seen) == size


def test_made_up_rows_of_a_variable_dimension_have_its_maximum() -> None:
    of_any_length = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1,), max_length=5)
    model = Sum()
    MadeUpRows("m", model, [of_any_length], [Y], largest=2).batch(2)()
    assert model.seen[-1].shape == (2, 5)


def test_made_up_rows_are_no_memory_of_the_cell() -> None:
    def anonymous_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    class Nothing:
        def predict(self, inputs: Sequence[Array]) -> list[Array]:
            return [np.zeros((len(inputs[0]), 1), np.float32)]

    wide = TensorSpec(name="x", datatype=Datatype.FP32, shape=(2**20,))
    before = anonymous_kib()
    compute = MadeUpRows("m", Nothing(), [wide], [Y], largest=16).batch(16)
    assert anonymous_kib() - before < 32 * 2**10  # the rows take 64 MiB, one that is being made 12
    compute()
