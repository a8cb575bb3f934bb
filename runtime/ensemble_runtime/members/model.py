"""What every loaded model looks like, and the arrays that it takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import Datatype, TensorSpec
from ensemble_runtime.errors import ModelInvalidError

Array = NDArray[Any]


_DTYPES = {datatype: np.dtype(datatype.numpy) for datatype in Datatype}


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy type of a tensor's elements; a look-up, since it is asked for on every batch."""
    return _DTYPES[spec.datatype]


class Model(Protocol):
    """A member that is ready to compute."""

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """Compute one batch.

        Args:
            inputs: One array for each input of the manifest, in its order and datatype, of shape (rows, *shape).
                They are only read, and not kept beyond the call.

        Returns:
            One array for each output of the manifest, in its order and datatype, of shape (rows, *shape). They may be
            overwritten by the next call of the same model.

        Raises:
            Exception: whatever the model raises on these rows.
        """


def as_declared(array: Array, spec: TensorSpec) -> Array:
    """The output in the datatype that the manifest declares.

    Raises:
        ModelInvalidError: the cast would lose more than precision or range, e.g. FP32 to INT64.
    """
    wanted = _DTYPES[spec.datatype]
    if array.dtype == wanted:
        return array
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ModelInvalidError(
            f"output '{spec.name}': the model gives {array.dtype.name}, the manifest says {spec.datatype.value}"
        )
    return array.astype(wanted)


def count_mismatch(what: str, found: int, specs: Sequence[TensorSpec]) -> ModelInvalidError:
    """The error for a model with another number of inputs or outputs than the manifest."""
    names = ", ".join(spec.name for spec in specs)
    return ModelInvalidError(f"the model has {found} {what}, the manifest has {len(specs)} ({names})")
