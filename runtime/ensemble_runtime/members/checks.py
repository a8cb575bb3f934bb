"""What a member really answers, against what the manifest says: once before it is ready, and cheaply on each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import TensorSpec
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.model import Array, Model

_WARM_UP_LENGTH = 32
"""Length that a variable dimension has at warm-up, unless its maximum is smaller."""


def warm_up(
    member: str, model: Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch_size: int
) -> None:
    """Run the model on made-up rows and check what it answers.

    One row and a full batch, each twice: compiling runtimes specialise on the second call of a shape.

    Raises:
        ModelInvalidError: names the member, the output, what was found and what was expected; or the model's own failure.
    """
    for rows in (1, batch_size):
        for make in (np.zeros, np.ones):
            batch = [sample(spec, rows, _WARM_UP_LENGTH, make) for spec in inputs]
            try:
                answers = model.predict(batch)
            except ModelInvalidError as error:
                raise ModelInvalidError(f"member '{member}': {error}") from error
            except Exception as error:
                raise ModelInvalidError(
                    f"member '{member}': fails on a batch of {rows} made-up rows "
                    f"({', '.join(_described(x, spec) for x, spec in zip(batch, inputs, strict=True))}): {first_line(error)}"
                ) from error
            check_outputs(member, answers, outputs, rows)


def sample(spec: TensorSpec, rows: int, length: int, make: Callable[..., Array] = np.zeros) -> Array:
    """Made-up rows of an input; variable dimensions get `length`, or their maximum if that is less."""
    shape = tuple(min(length, spec.max_length) if dim == -1 else dim for dim in spec.shape)
    return make((rows, *shape), dtype=spec.datatype.numpy)


def check_outputs(member: str, answers: Sequence[Array], outputs: Sequence[TensorSpec], rows: int) -> None:
    """Check one batch's answers: their number, shapes and datatypes.

    Raises:
        ModelInvalidError: names the member, the output, what was found and what was expected.
    """
    if len(answers) != len(outputs):
        raise ModelInvalidError(f"member '{member}': {len(answers)} outputs, expected {len(outputs)}")
    for answer, spec in zip(answers, outputs, strict=True):
        if answer.shape[:1] != (rows,) or not _fits(answer.shape[1:], spec):
            expected = ", ".join(map(str, (rows, *spec.shape)))
            found = ", ".join(map(str, answer.shape))
            raise ModelInvalidError(
                f"member '{member}': output '{spec.name}' has shape [{found}], expected [{expected}] (batch first)"
                + ("" if spec.fixed else f", variable dimensions from 1 to {spec.max_length}")
            )
        if answer.dtype != spec.datatype.numpy:
            raise ModelInvalidError(
                f"member '{member}': output '{spec.name}' is {answer.dtype.name}, expected {spec.datatype.value}"
            )


def bad_rows(answers: Sequence[Array]) -> NDArray[np.bool_] | None:
    """Which rows hold a NaN or an infinity in any output; None if none does.

    The common case costs one reduction: a sum is finite only if all its terms are. A sum that overflows sends
    sound rows to the exact test, which clears them.
    """
    bad: NDArray[np.bool_] | None = None
    for answer in answers:
        if answer.dtype.kind != "f" or np.isfinite(np.add.reduce(answer, axis=None)):
            continue
        rows = ~np.isfinite(answer.reshape(len(answer), -1)).all(axis=1)
        bad = rows if bad is None else bad | rows
    return bad if bad is not None and bad.any() else None


def first_line(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        1 <= found <= spec.max_length if dim == -1 else found == dim
        for found, dim in zip(shape, spec.shape, strict=True)
    )


def _described(array: Array, spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.datatype.value} {list(array.shape)}"
