"""Whether a model in parts answers as it does as a whole: asked before it serves, on rows that nobody has seen yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble_runtime.config import Device, DeviceKind, Precision, TensorSpec
from ensemble_runtime.errors import EnsembleError
from ensemble_runtime.members.checks import failure, first_line, lacks_memory, random_rows
from ensemble_runtime.members.model import Array, Model

_RELATIVE = 1e-5
"""What parts in FP32 are held to."""
_ROUNDING = 1e-4
"""Of an output's largest number: sums in another order."""
_COARSE = 2e-2
"""The same where a device computes with 11 bits of a number: in FP16, or a GPU that multiplies FP32 as TF32."""
_DRAWS = 2
"""Different rows each time: a part that reads what stood there the first time is right once."""


@dataclass(frozen=True)
class Draw:
    """A batch of made-up rows, and what the whole model answers."""

    batch: Sequence[Array]
    expected: Sequence[Array]


def drawn(whole: Model, inputs: Sequence[TensorSpec], rows: int) -> tuple[Draw, ...]:
    """What a model in parts is to be asked: the whole one need not be there any more by then.

    Args:
        whole: On one device.
        inputs: The manifest's.
        rows: Of a batch.

    Raises:
        ModelInvalidError: It fails.
        OutOfMemoryError: It fails for lack of memory.
    """
    random = np.random.default_rng(1)
    sizes = [rows] * _DRAWS + [1] * (rows > 1)  # of one row, parts begin where they do for no full batch
    batches = [[random_rows(spec, size, 1, random) for spec in inputs] for size in sizes]
    try:
        return tuple(Draw(batch, whole.predict(batch)) for batch in batches)
    except EnsembleError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise failure(error, f"fails on made-up rows: {first_line(error)}") from error


def disagreement(parts: Model, draws: Sequence[Draw], tolerance: float) -> str | None:
    """Why a model in parts must not serve; None if it answers as the whole one.

    Args:
        parts: In parts.
        draws: What to ask.
        tolerance: By which a number may differ, of the largest of its output.

    Raises:
        OutOfMemoryError: There is no room to compute it.
    """
    for count, draw in enumerate(draws, 1):
        try:
            found = parts.predict(draw.batch)
        except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
            if lacks_memory(error):
                raise failure(error, f"has no room: {first_line(error)}") from error
            return f"it fails where the whole one does not: {first_line(error)}"
        for i, (right, answer) in enumerate(zip(draw.expected, found, strict=True)):
            if (excess := _excess(answer, right, tolerance)) is not None:
                most = f"by up to {excess:.2g} of its largest number"
                return f"output {i} differs {most} in batch {count} of {len(draws)}"
    return None


def tolerated(precision: Precision, devices: Sequence[Device]) -> float:
    """By how much parts may differ from the whole, of an output's largest number."""
    exact = precision is Precision.FP32 and all(device.kind is DeviceKind.CPU for device in devices)
    return _ROUNDING if exact else _COARSE


def _excess(found: Array, right: Array, tolerance: float) -> float | None:
    """The largest difference, of the largest number; None if it is small enough."""
    if found.shape != right.shape:
        return np.inf
    if right.dtype.kind != "f":
        return None if np.array_equal(found, right) else 1.0
    exact = right.astype(np.float64)
    scale = float(np.max(np.abs(exact), initial=0.0, where=np.isfinite(exact)))
    if np.allclose(found, exact, rtol=_RELATIVE, atol=tolerance * scale, equal_nan=True):
        return None
    difference = float(np.max(np.abs(found - exact), initial=0.0))
    return difference / scale if scale else np.inf
