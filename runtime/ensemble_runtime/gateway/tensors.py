"""Tensor data in JSON: lists of numbers, flat or nested, to typed arrays; strictly, for numpy alone would guess."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import Datatype


def from_json(data: object, datatype: Datatype, count: int) -> NDArray[Any]:
    """Convert the `data` of one tensor.

    Args:
        data: What stood in the JSON.
        datatype: The element type that it must have.
        count: How many elements the tensor's shape holds.

    Returns:
        A contiguous array of `count` elements, row-major.

    Raises:
        ValueError: the message says what was expected.
    """
    values = _flatten(data)
    if len(values) != count:
        raise ValueError(f"expected {count} elements, as the shape says, got {len(values)}")
    _check_types(values, datatype)
    if datatype.value.startswith("FP"):
        return _floats(values, datatype)
    if datatype is not Datatype.BOOL:
        bounds = np.iinfo(datatype.numpy)
        if min(values) < bounds.min or max(values) > bounds.max:
            raise ValueError(f"expected {datatype} values, from {bounds.min} to {bounds.max}")
    return np.fromiter(values, datatype.numpy, count)


def _flatten(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("expected an array of elements, flat or nested")
    while data and type(data[0]) is list:
        if set(map(type, data)) != {list} or len(set(map(len, data))) != 1:
            raise ValueError("expected nested arrays of equal length")
        data = list(chain.from_iterable(data))
    return data


def _check_types(values: list[Any], datatype: Datatype) -> None:
    allowed: set[type]
    if datatype is Datatype.BOOL:
        allowed, words = {bool}, "true or false"
    elif datatype.value.startswith("FP"):
        allowed, words = {int, float}, "numbers"
    else:
        allowed, words = {int}, "integers"
    found = set(map(type, values))
    if wrong := found - allowed:
        names = {"NoneType": "null", "str": "a string", "dict": "an object", "bool": "a boolean", "list": "an array"}
        listed = ", ".join(sorted(names.get(kind.__name__, f"a {kind.__name__}") for kind in wrong))
        raise ValueError(f"expected {words} for {datatype}, found {listed}")


def _floats(values: list[Any], datatype: Datatype) -> NDArray[Any]:
    with np.errstate(over="raise"):
        try:
            return np.fromiter(values, np.float64, len(values)).astype(datatype.numpy)
        except FloatingPointError:
            limit = np.finfo(datatype.numpy).max
            raise ValueError(f"expected {datatype} values, at most {limit:g} in magnitude") from None
