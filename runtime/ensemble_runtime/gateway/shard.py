"""A shard's side of an ensemble that spans nodes: its head asks for members' own rows, and hears which are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from ensemble_runtime.config import Combination, Shard
from ensemble_runtime.gateway.answers import Answer
from ensemble_runtime.gateway.encoder import Encoder, Template
from ensemble_runtime.gateway.inference import Inference
from ensemble_runtime.gateway.protocol import InferRequest, RequestParser
from ensemble_runtime.gateway.refusal import invalid
from ensemble_runtime.pipeline.folds import EVERYTHING
from ensemble_runtime.pipeline.port import Lease, Options, Outcome, Pipeline
from ensemble_runtime.pipeline.remote_wire import PARTIAL, Partial, authorization
from ensemble_runtime.pipeline.rules import partial_fold
from ensemble_runtime.sizes import row_stride
from ensemble_runtime.span import SUMS

_JSON_BYTES = 65_536
"""What the JSON of a question may take besides its tensors."""


class ShardInference(Inference):
    """Requests of the head, which comes with the ensemble's token."""

    def __init__(self, pipeline: Pipeline[Any], shard: Shard) -> None:
        """Raises ManifestError where the token cannot be read."""
        super().__init__(pipeline)
        self.authorization = authorization(shard.token_file)
        self.encoder = ShardEncoder(self.config)
        self.parser = ShardParser(self.config, pipeline.max_rows)
        # A head hands over batches, which no client's limit is meant for: what fits into the arena may come.
        self.max_body = pipeline.max_rows * sum(map(row_stride, self.config.inputs)) + _JSON_BYTES


@dataclass(frozen=True, slots=True)
class ShardRequest(InferRequest):
    """A head's request."""

    partial: Partial | None
    """Of whom it wants the sum, in place of combined outputs."""


class ShardParser(RequestParser):
    """Requests for the outputs of some members, each of which may fail on its own."""

    def parse(self, raw: bytes | bytearray | memoryview) -> InferRequest:
        """See `RequestParser.parse`."""
        request = super().parse(raw)
        partial = _partial(orjson.loads(raw).get(PARTIAL), self._members)
        if partial is None and any(choice.member is None for choice in request.outputs):
            raise invalid(f"outputs: expected <output>@<member>, or `{PARTIAL}`, which says how to combine")
        folded = partial.shares if partial else ()
        asked = dict.fromkeys([*(choice.member for choice in request.outputs if choice.member), *folded])
        fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        return ShardRequest(**fields | {"options": Options(min_members=1, only=tuple(asked)), "partial": partial})

    def parse_raw(self, size: int) -> InferRequest:
        """See `RequestParser.parse_raw`; a head always says whom it asks."""
        raise invalid("Inference-Header-Content-Length: a shard needs the JSON that says which members are asked")


class ShardEncoder(Encoder):
    """Answers with what is there, and the reasons of what is not."""

    def template(self, request: InferRequest) -> Template | None:
        """See `Encoder.template`: whose outputs there are is known at the end."""
        return None

    def encode(self, request: InferRequest, outcome: Outcome, lease: Lease) -> Answer:
        """See `Encoder.encode`; that no member has answered is an answer, too."""
        assert isinstance(request, ShardRequest)
        shares = request.partial.shares if request.partial else {}
        folded = [member for member in shares if member not in outcome.missing]
        if request.partial is None or not folded:
            own = tuple(choice for choice in request.outputs if choice.member is not None)
            return self._encoded(replace(request, outputs=own), outcome, lease)
        return self._encoded(request, outcome, _Folded(lease, request.partial, folded))

    def _parameters(self, outcome: Outcome) -> dict[str, Any]:
        return {"missing": outcome.missing} if outcome.missing else {}


class _Folded:
    """A lease whose combined outputs are the sums of some members."""

    def __init__(self, lease: Lease, partial: Partial, members: Sequence[str]) -> None:
        self.rows = lease.rows
        self.input = lease.input
        self.member_output = lease.member_output
        self.disagreement = lease.disagreement
        self._members = members
        combination = Combination(rule=partial.rule, predictions=partial.predictions)
        self._fold = partial_fold(combination, [partial.shares[member] for member in members])

    def output(self, index: int) -> NDArray[np.generic]:
        """The members' outputs, folded."""
        values = [self.member_output(member, index) for member in self._members]
        total = np.empty_like(values[0])
        for place, each in enumerate(values):
            self._fold.fold(total, EVERYTHING, place == 0, each, place)
        return total


def _partial(document: object, members: Sequence[str]) -> Partial | None:
    if document is None:
        return None
    try:
        partial = Partial.model_validate(document)
    except ValidationError as error:
        raise invalid(f"{PARTIAL}: {error.errors()[0]['msg']}") from None
    if partial.rule not in SUMS:
        raise invalid(f"{PARTIAL}.rule: {partial.rule} needs each member's rows")
    if not partial.shares or not set(partial.shares) <= set(members):
        raise invalid(f"{PARTIAL}.shares: expected members of {', '.join(members)}")
    return partial
