"""What a member really answers, against what the manifest says: once before it is ready, and cheaply on each batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import TensorSpec
from ensemble_runtime.errors import EnsembleError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.model import Array, Model, dtype_of

_WARM_UP_LENGTH = 32
"""Length that a variable dimension has at warm-up, unless its maximum is smaller."""


def warm_up(
    member: str, model: Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch_size: int
) -> None:
    """Run the model on made-up rows and check what it answers.

    One row and a full batch, each twice: compiling runtimes specialise on the second call of a shape.

    Raises:
        ModelInvalidError: names the member, the output, what was found and what was expected, or the model's failure.
        OutOfMemoryError: the model fails for lack of memory.
    """
    for rows in (1, batch_size):
        for value in (0, 1):
            batch = [np.full(_shape(spec, rows, _WARM_UP_LENGTH), value, dtype_of(spec)) for spec in inputs]
            try:
                answers = model.predict(batch)
            except ModelInvalidError as error:
                raise ModelInvalidError(f"member '{member}': {error}") from error
            except Exception as error:
                shapes = ", ".join(f"{spec.name} {list(x.shape)}" for x, spec in zip(batch, inputs, strict=True))
                raise failure(
                    error, f"member '{member}': fails on made-up rows ({shapes}, batch first): {first_line(error)}"
                ) from error
            check_outputs(member, answers, outputs, rows)


def random_rows(spec: TensorSpec, rows: int, length: int, random: np.random.Generator) -> Array:
    """Made-up rows of an input: normal, or 0 and 1 for whole numbers, which may be indices into a vocabulary.

    Variable dimensions get `length`, or their maximum if that is less.
    """
    shape, dtype = _shape(spec, rows, length), dtype_of(spec)
    values = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
    return values.astype(dtype)


def check_outputs(member: str, answers: Sequence[Array], outputs: Sequence[TensorSpec], rows: int) -> None:
    """Check one batch's answers: their number, shapes and datatypes.

    Raises:
        ModelInvalidError: names the member, the output, what was found and what was expected.
    """
    if len(answers) != len(outputs):
        raise ModelInvalidError(f"member '{member}': {len(answers)} outputs, expected {len(outputs)}")
    for answer, spec in zip(answers, outputs, strict=True):
        if answer.shape != (rows, *spec.shape) and (answer.shape[:1] != (rows,) or not _fits(answer.shape[1:], spec)):
            expected = ", ".join(map(str, (rows, *spec.shape)))
            found = ", ".join(map(str, answer.shape))
            raise ModelInvalidError(
                f"member '{member}': output '{spec.name}' has shape [{found}], expected [{expected}] (batch first)"
                + ("" if spec.fixed else f", variable dimensions from 1 to {spec.max_length}")
            )
        if answer.dtype != dtype_of(spec):
            raise ModelInvalidError(
                f"member '{member}': output '{spec.name}' is {answer.dtype.name}, expected {spec.datatype.value}"
            )


def bad_rows(answers: Sequence[Array]) -> NDArray[np.bool_] | None:
    """Which rows hold a NaN or an infinity in any output; None if none does.

    The common case costs one reduction: a sum of squares is finite only if all its terms are. Where it overflows, the
    exact test clears the rows. (A dot product, unlike `sum`, needs no `errstate`, which costs more than the rest.)
    """
    bad: NDArray[np.bool_] | None = None
    for answer in answers:
        if answer.dtype.kind != "f" or math.isfinite(np.vdot(answer, answer)):
            continue
        unsound = np.logical_not(np.isfinite(answer.reshape(len(answer), -1)).all(axis=1))
        bad = unsound if bad is None else np.logical_or(bad, unsound)
    return bad if bad is not None and bad.any() else None


def failure(error: BaseException, message: str) -> EnsembleError:
    """What an exception that a model or its library raised comes to: lack of memory, or else a model of no use."""
    return (OutOfMemoryError if lacks_memory(error) else ModelInvalidError)(message)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception tells of lacking memory; torch and ONNX Runtime have no common class for it."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _NO_MEMORY)


_NO_MEMORY = (
    "out of memory",
    "outofmemory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "is smaller than requested bytes",  # ONNX Runtime, of the part of a GPU that a session may take
    "bad_alloc",
    "bad allocation",
    "_status_alloc_failed",  # cuBLAS and cuDNN, whose workspace finds no room beside torch's
)


def first_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


def _shape(spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
    return (rows, *(min(length, spec.max_length) if dim == -1 else dim for dim in spec.shape))


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        1 <= found <= spec.max_length if dim == -1 else found == dim
        for found, dim in zip(shape, spec.shape, strict=True)
    )
