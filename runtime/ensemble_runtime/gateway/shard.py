"""A shard's side of an ensemble that spans nodes: its head asks for members' own rows, and hears which are missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ensemble_runtime.config import Shard
from ensemble_runtime.gateway.answers import Answer
from ensemble_runtime.gateway.encoder import Encoder, Template
from ensemble_runtime.gateway.inference import Inference
from ensemble_runtime.gateway.protocol import InferRequest, RequestParser
from ensemble_runtime.gateway.refusal import invalid
from ensemble_runtime.pipeline.port import Lease, Options, Outcome, Pipeline
from ensemble_runtime.pipeline.remote_wire import authorization
from ensemble_runtime.sizes import row_stride

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


class ShardParser(RequestParser):
    """Requests for the outputs of some members, each of which may fail on its own."""

    def parse(self, raw: bytes | bytearray | memoryview) -> InferRequest:
        """See `RequestParser.parse`."""
        request = super().parse(raw)
        asked = tuple(dict.fromkeys(choice.member for choice in request.outputs if choice.member is not None))
        if not asked or any(choice.member is None for choice in request.outputs):
            raise invalid("outputs: a shard gives members' own outputs only; expected <output>@<member>")
        return replace(request, options=Options(min_members=1, only=asked))


class ShardEncoder(Encoder):
    """Answers with what is there, and the reasons of what is not."""

    def template(self, request: InferRequest) -> Template | None:
        """See `Encoder.template`: whose outputs there are is known at the end."""
        return None

    def encode(self, request: InferRequest, outcome: Outcome, lease: Lease) -> Answer:
        """See `Encoder.encode`; that no member has answered is an answer, too."""
        return self._encoded(request, outcome, lease)

    def _parameters(self, outcome: Outcome) -> dict[str, Any]:
        return {"missing": outcome.missing} if outcome.missing else {}
