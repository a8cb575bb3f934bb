"""What members answer, checked against the manifest."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble_runtime.config import Datatype, TensorSpec
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import bad_rows, check_outputs, first_line, warm_up
from ensemble_runtime.members.model import as_declared

X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(4,))
P = TensorSpec(name="p", datatype=Datatype.FP32, shape=(3,))
BOXES = TensorSpec(name="boxes", datatype=Datatype.FP32, shape=(-1, 4), max_length=5)

tables = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
)


class Answers:
    """A model that answers what it is told, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def predict(self, inputs):
        self.asked.append([x.copy() for x in inputs])
        return self.answer(len(inputs[0]))


def good(rows):
    return [np.zeros((rows, 3), np.float32)]


@given(st.lists(tables, min_size=1, max_size=3))
def test_bad_rows_are_exactly_those_with_a_nan_or_an_infinity(arrays):
    rows = min(map(len, arrays))
    arrays = [array[:rows] for array in arrays]
    expected = np.array([any(not np.isfinite(array[i]).all() for array in arrays) for i in range(rows)])
    found = bad_rows(arrays)
    assert np.array_equal(found, expected) if expected.any() else found is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_large_sound_values_are_no_bad_rows_and_no_warning(dtype):
    array = np.full((4, 100), np.finfo(dtype).max, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bad_rows([array]) is None


def test_whole_numbers_are_never_bad():
    assert bad_rows([np.full((2, 2), 2**62)]) is None


def test_a_row_without_elements_is_sound():
    assert bad_rows([np.zeros((2, 0), np.float32)]) is None


@pytest.mark.parametrize("spec", [P, BOXES])
@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple), rows=st.integers(1, 6))
def test_only_shapes_of_the_manifest_pass(spec, shape, rows):
    dims = shape[1:]
    fits = shape[0] == rows and (dims == (3,) if spec is P else len(dims) == 2 and 1 <= dims[0] <= 5 and dims[1] == 4)
    answers = [np.zeros(shape, np.float32)]
    if fits:
        check_outputs("m", answers, [spec], rows)
    else:
        with pytest.raises(ModelInvalidError, match=f"member 'm': output '{spec.name}'"):
            check_outputs("m", answers, [spec], rows)


def test_found_and_expected_are_named():
    with pytest.raises(ModelInvalidError, match=r"has shape \[2, 7\], expected \[2, 3\] \(batch first\)"):
        check_outputs("m", [np.zeros((2, 7), np.float32)], [P], 2)
    with pytest.raises(ModelInvalidError, match=r"expected \[2, -1, 4\].*from 1 to 5"):
        check_outputs("m", [np.zeros((2, 6, 4), np.float32)], [BOXES], 2)
    with pytest.raises(ModelInvalidError, match="is float64, expected FP32"):
        check_outputs("m", [np.zeros((2, 3))], [P], 2)
    with pytest.raises(ModelInvalidError, match="member 'm': 2 outputs, expected 1"):
        check_outputs("m", good(2) * 2, [P], 2)


def test_warm_up_runs_one_row_and_a_full_batch_twice_each():
    model = Answers(good)
    warm_up("m", model, [X], [P], 8)
    assert [asked[0].shape for asked in model.asked] == [(1, 4), (1, 4), (8, 4), (8, 4)]
    assert all(asked[0].dtype == np.float32 for asked in model.asked)


def test_warm_up_keeps_variable_dimensions_within_their_maximum():
    model = Answers(good)
    warm_up("m", model, [BOXES], [P], 2)
    assert model.asked[0][0].shape == (1, 5, 4)


def test_a_model_that_ignores_the_batch_axis_is_found_out():
    with pytest.raises(ModelInvalidError, match=r"output 'p' has shape \[1, 3\], expected \[8, 3\]"):
        warm_up("m", Answers(lambda _: good(1)), [X], [P], 8)


def test_a_model_that_raises_is_reported_with_what_it_was_given():
    def fails(rows):
        raise RuntimeError("\n  mat1 and mat2 do not match\nand a long trace")

    with pytest.raises(ModelInvalidError) as caught:
        warm_up("m", Answers(fails), [X], [P], 8)
    assert str(caught.value) == (
        "member 'm': fails on made-up rows (x [1, 4], batch first): RuntimeError: mat1 and mat2 do not match"
    )


class CudaOutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        CudaOutOfMemoryError("tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "The following operation failed:\nDefaultCPUAllocator: can't allocate memory: you tried to allocate"
        ),
        RuntimeError(
            "Non-zero status code returned: Failed to allocate memory for requested buffer of size 1099511627776"
        ),
        RuntimeError("Exception during initialization: std::bad_alloc"),
        RuntimeError(
            "BFCArena::AllocateRawInternal Available memory of 1031936 is smaller than requested bytes of 4194304"
        ),
    ],
)
def test_a_model_that_lacks_memory_for_a_full_batch_is_no_broken_one(error):
    def fails(rows):
        if rows > 1:
            raise error
        return good(rows)

    with pytest.raises(OutOfMemoryError, match=r"^member 'm': fails on made-up rows \(x \[8, 4\]"):
        warm_up("m", Answers(fails), [X], [P], 8)


@pytest.mark.parametrize(("error", "line"), [(ValueError(), "ValueError"), (KeyError("a\nb"), "KeyError: 'a\\nb'")])
def test_an_exception_as_one_line(error, line):
    assert first_line(error) == line


def test_casts_lose_no_more_than_precision():
    assert as_declared(np.ones((1, 3)), P).dtype == np.float32
    already = np.ones((1, 3), np.float32)
    assert as_declared(already, P) is already
    with pytest.raises(ModelInvalidError, match="output 'n': the model gives float32, the manifest says INT64"):
        as_declared(already, TensorSpec(name="n", datatype=Datatype.INT64, shape=(3,)))
