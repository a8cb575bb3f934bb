"""From the arena's rows to answers, in JSON or binary, output by output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.gateway.answers import Answer, failed, response_head
from ensemble_runtime.gateway.protocol import InferRequest, OutputChoice
from ensemble_runtime.pipeline.port import Lease, Outcome, Verdict

_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Template:
    """The complete answer of a request but for its tensors, where these are all binary and of known size."""

    head: bytes
    json: bytes
    sizes: tuple[tuple[int, int], ...]
    """(output, bytes) in order."""

    def fill(self, lease: Lease) -> Answer | None:
        """The answer with the lease's outputs; None if these are not as expected."""
        parts = [self.json]
        for index, size in self.sizes:
            tensor = lease.output(index).tobytes()
            if len(tensor) != size:
                return None
            parts.append(tensor)
        return Answer(200, b"".join(parts), len(self.json), head=self.head)


class Encoder:
    """Turns outcomes into answers, for one ensemble."""

    def __init__(self, config: RuntimeConfig) -> None:
        self._model = {"model_name": config.name, "model_version": config.version}
        self._specs = config.outputs
        self._types = tuple(np.dtype(spec.datatype.numpy) for spec in config.outputs)
        self._members = tuple(member.name for member in config.members if not member.shadow)

    def template(self, request: InferRequest) -> Template | None:
        """Prepare the complete answer, if all but the tensors follows from the request alone."""
        choices = request.outputs
        if any(c.member or c.signal or not c.binary or not self._specs[c.index].fixed for c in choices):
            return None
        entries, sizes = [], []
        for choice in choices:
            shape = (request.rows, *self._specs[choice.index].shape)
            entry, size = self._binary_entry(choice, shape, self._types[choice.index])
            entries.append(entry)
            sizes.append((choice.index, size))
        document = self._json(request, {}, entries)
        length = len(document) + sum(size for _, size in sizes)
        return Template(response_head(Answer(200, b"", len(document)), length, True), document, tuple(sizes))

    def encode(self, request: InferRequest, outcome: Outcome, lease: Lease) -> Answer:
        """The answer of a request; copies out of the arena.

        Raises:
            RefusedError: the outcome holds no answer.
        """
        if not outcome.answered:
            raise failed(outcome)
        return self._encoded(request, outcome, lease)

    def _encoded(self, request: InferRequest, outcome: Outcome, lease: Lease) -> Answer:
        entries: list[dict[str, Any]] = []
        tensors: list[bytes] = []
        for choice in request.outputs:
            if choice.member in outcome.missing:
                continue
            array = self._values(choice, lease)
            if choice.binary:
                entry, _ = self._binary_entry(choice, array.shape, array.dtype)
                tensors.append(array.tobytes())
            else:
                entry = self._entry(choice, array.shape) | {"data": array.ravel()}
            entries.append(entry)
        document = self._json(request, self._parameters(outcome), entries)
        if not tensors:
            return Answer(200, document)
        return Answer(200, b"".join((document, *tensors)), len(document))

    def _values(self, choice: OutputChoice, lease: Lease) -> NDArray[Any]:
        if choice.signal is not None:
            return np.ascontiguousarray(lease.disagreement()[choice.signal], _FLOAT32)
        if choice.member is not None:
            values = lease.member_output(choice.member, choice.index)
        else:
            values = lease.output(choice.index)
        return np.ascontiguousarray(values, self._types[choice.index])

    def _entry(self, choice: OutputChoice, shape: tuple[int, ...]) -> dict[str, Any]:
        datatype = "FP32" if choice.signal is not None else self._specs[choice.index].datatype.value
        return {"name": choice.name, "shape": shape, "datatype": datatype}

    def _binary_entry(
        self, choice: OutputChoice, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[dict[str, Any], int]:
        size = dtype.itemsize
        for dim in shape:
            size *= dim
        return self._entry(choice, shape) | {"parameters": {"binary_data_size": size}}, size

    def _parameters(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.verdict is not Verdict.PARTIAL:
            return {}
        return {
            "partial": True,
            "members_used": ",".join(member for member in self._members if member not in outcome.missing),
            "members_missing": "; ".join(f"{member}: {reason}" for member, reason in outcome.missing.items()),
        }

    def _json(self, request: InferRequest, parameters: dict[str, Any], entries: list[dict[str, Any]]) -> bytes:
        document: dict[str, Any] = dict(self._model)
        if request.id is not None:
            document["id"] = request.id
        if parameters:
            document["parameters"] = parameters
        document["outputs"] = entries
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
