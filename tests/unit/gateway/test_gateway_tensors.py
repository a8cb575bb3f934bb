"""JSON tensor data becomes exactly what was said, or one clear refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ensemble_runtime.config import Datatype
from ensemble_runtime.gateway.tensors import from_json


def arrays(datatype: Datatype) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    dtype = np.dtype(datatype.numpy)
    elements = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return npst.arrays(dtype, npst.array_shapes(min_dims=1, max_dims=4, max_side=4), elements=elements)


@given(data=st.data(), datatype=st.sampled_from(list(Datatype)), flat=st.booleans())
def test_every_value_of_every_type_survives_json(data: st.DataObject, datatype: Datatype, flat: bool) -> None:
    array = data.draw(arrays(datatype))
    said = array.ravel() if flat else array
    heard = orjson.loads(orjson.dumps(said.tolist()))
    result = from_json(heard, datatype, array.size)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array.ravel())


@pytest.mark.parametrize("datatype", [d for d in Datatype if d.value.startswith(("INT", "UINT"))])
def test_integers_beyond_their_type_are_refused_and_its_bounds_are_not(datatype: Datatype) -> None:
    bounds = np.iinfo(datatype.numpy)
    assert from_json([int(bounds.min), int(bounds.max)], datatype, 2).tolist() == [bounds.min, bounds.max]
    for wrong in (int(bounds.min) - 1, int(bounds.max) + 1):
        with pytest.raises(ValueError, match=f"expected {datatype} values"):
            from_json([wrong], datatype, 1)


@pytest.mark.parametrize(
    ("values", "datatype", "expected"),
    [
        ([1.5], "INT32", "expected integers for INT32, found a float"),
        ([True], "INT32", "expected integers for INT32, found a boolean"),
        ([1, True], "FP32", "expected numbers for FP32, found a boolean"),
        (["1"], "FP32", "expected numbers for FP32, found a string"),
        ([None], "FP32", "expected numbers for FP32, found null"),
        ([{}], "FP32", "expected numbers for FP32, found an object"),
        ([1], "BOOL", "expected true or false for BOOL, found a int"),
        ([1e39], "FP32", "expected FP32 values, at most 3.40282e+38 in magnitude"),
        ([70000], "FP16", "expected FP16 values, at most 65504 in magnitude"),
        ("abc", "FP32", "expected an array of elements"),
        (1.0, "FP32", "expected an array of elements"),
        ([[1], 2], "FP32", "expected nested arrays of equal length"),
        ([1, [2]], "FP32", "expected numbers for FP32, found an array"),
        ([[1, 2], [3]], "FP32", "expected nested arrays of equal length"),
        ([1, 2], "FP32", "expected 1 elements, as the shape says, got 2"),
        ([], "FP32", "expected 1 elements, as the shape says, got 0"),
    ],
)
def test_what_numpy_would_guess_is_refused(values: object, datatype: str, expected: str) -> None:
    count = len(values) if isinstance(values, list) and values != [1, 2] and values else 1
    with pytest.raises(ValueError, match=expected.replace("+", r"\+")):
        from_json(values, Datatype(datatype), count)
