"""What travels between the head of an ensemble and a shard.

The Open Inference Protocol's binary requests, over a path of their own, for outputs of single members; the answer says
which of these are missing and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ensemble_runtime.config import Name, Predictions, Rule, RuntimeConfig, Schema, TensorSpec
from ensemble_runtime.errors import ManifestError
from ensemble_runtime.pipeline.arena import DIED, REASONS

TARGET = "/v2/ensemble/shard/infer"
"""Where a shard hears its head."""

PARTIAL = "partial"
"""The field of a question that says how to fold."""

Array = NDArray[Any]


class UnreadableError(Exception):
    """What came back is not the answer of a shard of this ensemble."""


def authorization(token_file: str) -> bytes:
    """The value of the header that shards of one ensemble know each other by.

    Raises:
        ManifestError: the file cannot be read, or holds no token that a header can carry.
    """
    try:
        token = Path(token_file).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"tokenFile: cannot read a token from {token_file}: {type(error).__name__}") from None
    if not token or not token.isprintable() or " " in token:
        raise ManifestError(f"tokenFile: {token_file} holds no token; expected one word of printable characters")
    return f"Bearer {token}".encode()


class Partial(Schema):
    """How a shard folds some members' rows, so that one sum travels back; see `rules.partial_fold`."""

    rule: Rule
    predictions: Predictions
    shares: dict[Name, float]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a shard answered: members' outputs in their order, or the reason why there are none; and their sum."""

    outputs: dict[str, list[Array]]
    missing: dict[str, str]
    partial: list[Array]
    """Of those members that were to be folded and are not missing; empty if there are none."""


class Wire:
    """Questions and answers of one ensemble."""

    def __init__(self, config: RuntimeConfig) -> None:
        self._inputs = config.inputs
        self._outputs = config.outputs

    def question(
        self, members: Sequence[str], partial: Partial | None, rows: int, shapes: Sequence[tuple[int, ...]]
    ) -> bytes:
        """The JSON before the input tensors.

        Args:
            members: Whose own outputs are asked for.
            partial: Who is asked for a sum, and how to make it.
            rows: How many rows follow.
            shapes: Of each input, without the batch axis.
        """
        names = [f"{spec.name}@{member}" for member in members for spec in self._outputs]
        document: dict[str, Any] = {
            "inputs": [_entry(spec, (rows, *shape)) for spec, shape in zip(self._inputs, shapes, strict=True)],
        }
        if partial is not None:
            names += [spec.name for spec in self._outputs]
            document[PARTIAL] = partial.model_dump(mode="json", by_alias=True)
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in names]
        return orjson.dumps(document)

    def answers(
        self, members: Sequence[str], partial: Partial | None, rows: int, json: memoryview, tensors: memoryview
    ) -> Answers:
        """Read an answer; the arrays are views of `tensors`.

        Raises:
            UnreadableError: it does not fit what was asked.
        """
        try:
            document = orjson.loads(json)
            missing = dict(document.get("parameters", {}).get("missing", {}))
            found, offset = {}, 0
            for entry in document["outputs"]:
                shape, size = tuple(entry["shape"]), int(entry["parameters"]["binary_data_size"])
                found[entry["name"]] = (entry["datatype"], shape, tensors[offset : offset + size])
                offset += size
            outputs = {
                member: [_array(spec, rows, *found[f"{spec.name}@{member}"]) for spec in self._outputs]
                for member in members
                if member not in missing
            }
            folded = partial is not None and not partial.shares.keys() <= missing.keys()
            sums = [_array(spec, rows, *found[spec.name]) for spec in self._outputs] if folded else []
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableError(f"an answer that cannot be read ({type(error).__name__}: {error})") from error
        return Answers(outputs, missing, sums)


def code_of(reason: str) -> int:
    """The code of a report whose reason another runtime gave; what came too late has died on the request."""
    return next((code for code, text in REASONS.items() if code and reason.startswith(text)), DIED)


def _entry(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Any]:
    size = spec.datatype.itemsize
    for dim in shape:
        size *= dim
    return {
        "name": spec.name,
        "shape": shape,
        "datatype": spec.datatype.value,
        "parameters": {"binary_data_size": size},
    }


def _array(spec: TensorSpec, rows: int, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    fits = len(shape) == len(spec.shape) + 1 and all(
        1 <= got <= spec.max_length if dim == -1 else got == dim for got, dim in zip(shape[1:], spec.shape, strict=True)
    )
    if datatype != spec.datatype.value or shape[0] != rows or not fits:
        raise ValueError(f"output '{spec.name}' is {datatype} {list(shape)}")
    array: Array = np.frombuffer(data, spec.datatype.numpy).reshape(shape)
    return array
