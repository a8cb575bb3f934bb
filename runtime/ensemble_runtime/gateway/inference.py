"""The one handler behind both lanes: a body on its way into the arena, through the pipeline, and out as an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter_ns
from typing import Any

import numpy as np

from ensemble_runtime.config import Datatype
from ensemble_runtime.gateway.answers import Answer, refused
from ensemble_runtime.gateway.encoder import Encoder, Template
from ensemble_runtime.gateway.memo import Memo
from ensemble_runtime.gateway.metrics import Counters
from ensemble_runtime.gateway.protocol import InferRequest, RequestParser
from ensemble_runtime.gateway.refusal import Reason, RefusedError, busy, internal, invalid, not_found, too_large
from ensemble_runtime.pipeline.port import (
    COMPLETE,
    Lease,
    Outcome,
    OverloadedError,
    Pipeline,
    RequestTooLargeError,
    Verdict,
)

INLINE_BYTES = 65_536
"""JSON up to this size is decoded on the event loop, longer JSON in a thread."""

_GATHER_BODIES = 4
"""JSON bodies wait outside the arena; together they may take this many times the largest body."""

_NOTICEABLE_NS = 1_000_000
"""The pipeline looks at deadlines no more often: a body that takes less is not worth an account of it."""

_logger = logging.getLogger(__name__)


class Inference:
    """What all requests share: the pipeline, the ensemble's protocol, limits and counters."""

    def __init__(self, pipeline: Pipeline[Any]) -> None:
        config = pipeline.config
        self.pipeline = pipeline
        self.config = config
        self.counters = Counters(member.name for member in config.members)
        self.encoder = Encoder(config)
        self.max_body = config.serving.max_body_mib << 20
        self.receive_seconds = config.serving.timeout_ms / 1e3
        self.gathered = 0
        self.gather_most = self.max_body * _GATHER_BODIES
        self.booleans = tuple(i for i, spec in enumerate(config.inputs) if spec.datatype is Datatype.BOOL)
        self.parser = RequestParser(config, pipeline.max_rows)
        self.authorization: bytes | None = None
        """What a request has to carry; None: whoever reaches this gateway may ask."""
        self._memo = Memo[tuple[InferRequest, Template | None]](most=1024, entry_bytes=4096)
        self._known = self._memo.get
        self._was_ready = False

    def check_model(self, name: str, version: str | None = None) -> None:
        """Refuse names and versions other than the ensemble's, with 404."""
        if name != self.config.name:
            raise not_found(f"unknown model '{name}'; this server serves '{self.config.name}'")
        if version is not None and version != self.config.version:
            raise not_found(f"unknown version '{version}' of model '{name}'; it has version '{self.config.version}'")

    def request(self, json: bytes) -> tuple[InferRequest, Template | None]:
        """Parse the JSON before binary tensors, or remember it."""
        known = self._known(json)
        if known is None:
            request = self.parser.parse(json)
            known = request, self.encoder.template(request)
            # An identified request is not repeated.
            if request.id is None:
                self._memo.put(json, known)
        return known

    def lease(self, request: InferRequest) -> Lease:
        """Take rows for a request; refused with 503 when there is no room or no member has been ready yet."""
        if not self._was_ready:
            self._check_ready()
        try:
            lease: Lease = self.pipeline.lease(request.rows, request.shapes)
            return lease
        except OverloadedError as error:
            raise busy(str(error), error.retry_after) from None
        except RequestTooLargeError as error:
            raise invalid(str(error)) from None

    def _check_ready(self) -> None:
        health = self.pipeline.health()
        if not health.ready:
            raise busy(f"model '{self.config.name}' is not ready: {health.reason}")
        # From here on the pipeline itself knows best: what waits may outlive the restart of a worker, or meet a quorum.
        self._was_ready = True


class Exchange:
    """One inference request, from the first byte of its body to its answer.

    A lane feeds it the body, decodes it (in a thread if it is heavy) and submits it; nothing that the client sends
    raises here: what is wrong comes out of `submit` as the answer. Tensors after a short JSON go straight into the
    arena; a body that is all JSON, or raw, is gathered first.
    """

    __slots__ = (
        "_at",
        "_body",
        "_done",
        "_inference",
        "_json_bytes",
        "_lease",
        "_length",
        "_over",
        "_refusal",
        "_request",
        "_started",
        "_streams",
        "_submitted",
        "_template",
        "_view",
        "_views",
    )

    def __init__(self, inference: Inference, length: int | None, json_bytes: int | None) -> None:
        """Begin a request.

        Args:
            inference: What all requests share.
            length: The body's bytes, where they are known beforehand.
            json_bytes: The value of Inference-Header-Content-Length; None: absent, -1: not a number.
        """
        self._inference = inference
        self._length = length
        self._json_bytes = json_bytes
        self._streams = json_bytes is not None and 0 < json_bytes <= INLINE_BYTES
        self._body = bytearray()
        self._request: InferRequest | None = None
        self._template: Template | None = None
        self._lease: Lease | None = None
        self._view: memoryview | None = None
        self._views: list[memoryview] = []
        self._at = 0
        self._refusal: RefusedError | None = None
        self._done: Callable[[Answer], None] | None = None
        self._over = False
        self._started = perf_counter_ns()
        self._submitted = 0
        if json_bytes is not None and (json_bytes < 0 or (length is not None and json_bytes > length)):
            self._refuse(
                invalid("Inference-Header-Content-Length: expected the JSON's bytes, at most the body's length")
            )

    @property
    def refused(self) -> bool:
        """Whether the rest of the body makes no difference any more."""
        return self._refusal is not None

    @property
    def heavy(self) -> bool:
        """Whether decoding would hold up the event loop."""
        return not self._streams and self._refusal is None and len(self._body) > INLINE_BYTES

    def room(self) -> memoryview | None:
        """Where the body's next bytes belong, to be received right there; `filled` then tells how many came."""
        view = self._view
        return view[self._at :] if view is not None and self._at < len(view) else None

    def filled(self, count: int) -> None:
        """So many bytes were received into `room`."""
        self._at += count
        if self._view is not None and self._at == len(self._view) and self._views:
            self._view, self._at = self._views.pop(0), 0

    def feed(self, data: memoryview) -> None:
        """Take the body's next bytes."""
        if self._refusal is not None:
            return
        try:
            if self._lease is not None:
                self._fill(data)
            elif self._streams:
                self._open(data)
            else:
                self._gather(data)
        except RefusedError as error:
            self._refuse(error)
        except Exception:
            _logger.exception("a request's body could not be taken")
            self._refuse(internal())

    def decode(self) -> None:
        """Parse a gathered body; touches nothing but this exchange, so that a thread may do it."""
        if self._streams or self._refusal is not None:
            return
        try:
            body = memoryview(self._body)
            parser = self._inference.parser
            self._request = (
                parser.parse_raw(len(body)) if self._json_bytes == 0 else parser.parse(body[: self._json_end()])
            )
        except RefusedError as error:
            self._refusal = error
        except Exception:
            _logger.exception("a request's body could not be decoded")
            self._refusal = internal()

    def submit(self, done: Callable[[Answer], None]) -> None:
        """The body is complete: send the request on its way. `done` gets the answer, perhaps before this returns."""
        self._done = done
        try:
            if self._refusal is None:
                self._complete()
            if self._refusal is None and self._lease is not None and self._request is not None:
                self._forget_body()
                self._submitted = perf_counter_ns()
                options, age = self._request.options, self._submitted - self._started
                if age > _NOTICEABLE_NS:
                    options = replace(options, age=age / 1e9)
                self._inference.pipeline.submit(self._lease, options, self._finish)
                return
        except RefusedError as error:
            self._refuse(error)
        except Exception:
            _logger.exception("a request could not be submitted")
            self._refuse(internal())
        self._settle_refusal()

    def cancel(self, reason: Reason = Reason.CANCELED) -> None:
        """The client is gone, or was too slow: give everything back. Does nothing once the answer is out."""
        if not self._over:
            self._over = True
            self._forget_body()
            self._give_up_lease()
            self._inference.counters.failure(reason, self._started)

    def _open(self, data: memoryview) -> None:
        """The JSON first; what follows it goes into the arena."""
        size = self._json_bytes or 0
        if not self._body and len(data) >= size:
            json, data = bytes(data[:size]), data[size:]
        else:
            lacking = size - len(self._body)
            self._body += data[:lacking]
            if len(self._body) < size:
                return
            json, data = bytes(self._body), data[lacking:]
        request, self._template = self._inference.request(json)
        if self._length is not None:
            _check_size(request, self._length - size)
        elif size + request.binary_bytes > self._inference.max_body:
            raise too_large(self._inference.max_body)
        self._begin(request)
        if data:
            self._fill(data)

    def _begin(self, request: InferRequest) -> None:
        self._request = request
        self._lease = lease = self._inference.lease(request)
        for index, array in request.arrays:
            lease.input(index)[:] = array.data.cast("B")
        if request.binary:
            self._views = [lease.input(index) for index in request.binary]
            self._view, self._at = self._views.pop(0), 0

    def _fill(self, data: memoryview) -> None:
        while data:
            room = self.room()
            if room is None:
                raise invalid("the body has more bytes than its inputs' binary_data_size add up to")
            count = min(len(room), len(data))
            room[:count] = data[:count]
            data = data[count:]
            self.filled(count)

    def _gather(self, data: memoryview) -> None:
        inference = self._inference
        if len(self._body) + len(data) > inference.max_body:
            raise too_large(inference.max_body)
        if inference.gathered + len(data) > inference.gather_most:
            raise busy("too many large JSON bodies at once; try again, or send binary tensors")
        inference.gathered += len(data)
        self._body += data

    def _complete(self) -> None:
        if self._lease is None:
            if self._streams:
                raise invalid("the body ends before its JSON, by Inference-Header-Content-Length, does")
            if self._request is None:
                self.decode()
            if self._refusal is not None:
                return
            assert self._request is not None
            rest = memoryview(self._body)[self._json_end() :]
            _check_size(self._request, len(rest))
            self._begin(self._request)
            self._fill(rest)
        if self.room() is not None:
            raise invalid("the body has fewer bytes than its inputs' binary_data_size add up to")
        for index in self._inference.booleans:
            assert self._lease is not None
            if np.frombuffer(self._lease.input(index), np.uint8).max(initial=0) > 1:
                raise invalid(
                    f"inputs: the bytes of BOOL input '{self._inference.config.inputs[index].name}' must be 0 or 1"
                )

    def _json_end(self) -> int:
        return len(self._body) if self._json_bytes is None else self._json_bytes

    def _finish(self, outcome: Outcome) -> None:
        finished = perf_counter_ns()
        request, lease, counters = self._request, self._lease, self._inference.counters
        assert request is not None and lease is not None
        answer = None
        try:
            if self._template is not None and outcome is COMPLETE:
                answer = self._template.fill(lease)
            if answer is None:
                answer = self._encode(request, outcome, lease)
        except RefusedError as error:
            self._refusal = error
        except Exception:
            _logger.exception("an answer could not be written")
            self._refusal = internal()
        self._lease = None
        self._inference.pipeline.release(lease)
        if answer is None:
            self._settle_refusal()
            return
        counters.success(request.rows, self._started, self._submitted, finished)
        self._settle(answer)

    def _encode(self, request: InferRequest, outcome: Outcome, lease: Lease) -> Answer:
        counters = self._inference.counters
        counters.lacked(outcome.missing)
        answer = self._inference.encoder.encode(request, outcome, lease)
        if outcome.verdict is Verdict.PARTIAL:
            counters.partial += 1
        return answer

    def _refuse(self, error: RefusedError) -> None:
        """From here on the body is let pass, and what was taken is given back."""
        self._refusal = error
        self._forget_body()
        self._give_up_lease()

    def _settle_refusal(self) -> None:
        self._forget_body()
        error = self._refusal or internal()
        self._inference.counters.failure(error.reason, self._started)
        self._settle(refused(error))

    def _settle(self, answer: Answer) -> None:
        self._over = True
        if self._done is not None:
            self._done(answer)

    def _forget_body(self) -> None:
        if not self._streams:
            self._inference.gathered -= len(self._body)
        self._body = bytearray()
        self._view, self._views = None, []

    def _give_up_lease(self) -> None:
        if self._lease is not None:
            self._inference.pipeline.cancel(self._lease)
            self._lease = None


def _check_size(request: InferRequest, rest: int) -> None:
    if rest != request.binary_bytes:
        raise invalid(
            f"the inputs' binary_data_size add up to {request.binary_bytes} bytes, but {rest} follow the JSON; "
            "check Inference-Header-Content-Length and Content-Length"
        )
