"""Requests and answers of the Open Inference Protocol v2: numpy arrays to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ensemble_operator.cli.errors import DataError, ServerRefusedError
from ensemble_operator.cli.server import Server, Tensor
from ensemble_runtime.config import Datatype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

HEADER_LENGTH = "Inference-Header-Content-Length"


def checked(server: Server, arrays: Arrays) -> tuple[Arrays, int]:
    """The arrays in the server's types, and how many rows they have.

    Raises:
        DataError: An input is missing or unknown, or its shape, type or values are not the server's.
    """
    known = {tensor.name for tensor in server.inputs}
    if len(arrays) == len(known) == 1:  # a lone array needs no name
        arrays = dict(zip(known, arrays.values(), strict=True))
    if arrays.keys() != known:
        raise DataError(f"data: got {_names(arrays)}, expected the inputs of '{server.model}': {_names(known)}")
    out = {}
    for tensor in server.inputs:
        array = arrays[tensor.name]
        fits = array.ndim == len(tensor.shape) + 1 and all(
            want in (-1, have) for want, have in zip(tensor.shape, array.shape[1:], strict=True)
        )
        if not fits:
            expected = ["rows", *tensor.shape]
            raise DataError(f"data '{tensor.name}': got shape {list(array.shape)}, expected {expected}")
        out[tensor.name] = _cast(tensor, array)
    rows = {len(array) for array in out.values()}
    if len(rows) != 1 or 0 in rows:
        raise DataError(f"data: got {sorted(rows)} rows, expected the same number, at least one, of every input")
    return out, rows.pop()


def _cast(tensor: Tensor, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array in the server's type, with the same values; floats may lose digits, but not become infinite."""
    import numpy as np

    dtype = np.dtype(tensor.datatype.numpy)
    integers = dtype.kind in "iu" and array.dtype.kind in "iu"
    if not integers and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise DataError(f"data '{tensor.name}': got {array.dtype}, expected {tensor.datatype.value} ({dtype})")
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = np.ascontiguousarray(array, dtype)
    lost = cast != array if integers else np.isfinite(array) & ~np.isfinite(cast)
    if lost.any():
        limits = np.iinfo(dtype) if integers else np.finfo(dtype)
        row, value = np.argwhere(lost)[0][0], array[lost][0]
        expected = f"{tensor.datatype.value} ({limits.min} to {limits.max})"
        raise DataError(f"data '{tensor.name}': got {value} in row {row}, expected {expected}")
    return cast


def encode(server: Server, arrays: Arrays, rows: slice, parameters: Mapping[str, object]) -> bytes:
    """An HTTP request for some rows of the inputs, as binary tensors."""
    described, tensors = [], []
    for tensor in server.inputs:
        part = arrays[tensor.name][rows]
        tensors.append(part.tobytes())
        size = {"binary_data_size": len(tensors[-1])}
        shape = list(part.shape)
        described.append({"name": tensor.name, "datatype": tensor.datatype.value, "shape": shape, "parameters": size})
    document = {"parameters": {"binary_data_output": True, **parameters}, "inputs": described}
    header = json.dumps(document, separators=(",", ":")).encode()
    body = header + b"".join(tensors)
    head = (
        f"POST {server.infer_path} HTTP/1.1\r\nHost: {urlsplit(server.base).netloc}\r\n"
        f"Content-Type: application/octet-stream\r\n{HEADER_LENGTH}: {len(header)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True)
class Answer:
    """The tensors of an answer by name, and its parameters, e.g. `partial`."""

    outputs: Arrays
    parameters: Mapping[str, object]


def decode(body: bytes, header_length: int | None) -> Answer:
    """Read an answer, binary, JSON or mixed.

    Raises:
        ServerRefusedError: It is not what the protocol says.
    """
    import numpy as np

    end = len(body) if header_length is None else header_length
    try:
        document = json.loads(body[:end])
        outputs = {}
        for output in document["outputs"]:
            dtype, shape = np.dtype(Datatype(output["datatype"]).numpy), output["shape"]
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[output["name"]] = np.asarray(output["data"], dtype).reshape(shape)
            else:
                outputs[output["name"]] = np.frombuffer(body[end : end + size], dtype).reshape(shape)
                end += size
        return Answer(outputs, document.get("parameters", {}))
    except (ValueError, LookupError, TypeError) as error:
        raise ServerRefusedError(f"the answer is not of the Open Inference Protocol: {error!r}") from error


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
