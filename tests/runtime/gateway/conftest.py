"""A real pipeline over numpy arrays in the test's own process, behind the real gateway on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvloop
from numpy.typing import NDArray

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.gateway.server import serve
from ensemble_runtime.pipeline.port import (
    COMPLETE,
    CellStatus,
    Health,
    Options,
    Outcome,
    OverloadedError,
    RequestTooLargeError,
    Verdict,
)

DIGEST = "0" * 64


def make_config(**changes: Any) -> RuntimeConfig:
    """Three members a, b, c over one FP32 input `x` of four columns; outputs mirror inputs."""
    tensors = changes.pop("tensors", [{"name": "x", "datatype": "FP32", "shape": [4]}])
    members = changes.pop("members", ["a", "b", "c"])
    model = {"uri": "file://./model.onnx", "format": "ONNX", "sha256": DIGEST}
    return RuntimeConfig.model_validate(
        {
            "name": "digits",
            "version": "3",
            "members": [{"name": name, "model": model} for name in members],
            "inputs": tensors,
            "outputs": [dict(tensor, name=tensor["name"].replace("x", "y")) for tensor in tensors],
            "devices": [{"name": "cpu-0", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1 << 30, "cores": [0]}],
            "cells": [{"device": "cpu-0", "member": name, "batchSize": 8} for name in members],
            **changes,
        }
    )


@dataclass(eq=False)
class ArrayLease:
    """Rows as plain arrays. Member k's outputs are the inputs, plus k where they are floats."""

    config: RuntimeConfig
    rows: int
    shapes: Sequence[tuple[int, ...]]
    used: tuple[str, ...] = ()
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = [
            np.zeros((self.rows, *shape), spec.datatype.numpy)
            for spec, shape in zip(self.config.inputs, self.shapes, strict=True)
        ]

    def input(self, index: int) -> memoryview:
        return self.inputs[index].data.cast("B")

    def output(self, index: int) -> NDArray[Any]:
        values = [self.member_output(member, index) for member in self.used]
        return np.mean(values, axis=0).astype(values[0].dtype) if values[0].dtype.kind == "f" else values[0]

    def member_output(self, member: str, index: int) -> NDArray[Any]:
        values = self.inputs[index]
        place = [m.name for m in self.config.members].index(member)
        return values + values.dtype.type(place) if values.dtype.kind == "f" else values

    def disagreement(self) -> dict[str, NDArray[np.float32]]:
        names = ("variance", "predictive_entropy", "mutual_information", "vote_margin")
        return {name: np.full(self.rows, i / 2, np.float32) for i, name in enumerate(names)}


class ArrayPipeline:
    """The pipeline's port with members that can be slow, fail or hang, as a test says."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.config = config
        self.max_rows = 64
        self.in_flight = 0
        self.delays: dict[str, float] = {}
        self.failing: dict[str, str] = {}
        self.reason = ""
        self.room = True
        self.seen: list[Options] = []
        self.health_calls = 0

    def lease(self, rows: int, shapes: Sequence[tuple[int, ...]]) -> ArrayLease:
        if rows > self.max_rows:
            raise RequestTooLargeError("too many rows")
        if not self.room:
            raise OverloadedError("the queue is full", 2.5)
        self.in_flight += 1
        return ArrayLease(self.config, rows, shapes)

    def submit(self, lease: ArrayLease, options: Options, done: Callable[[Outcome], None]) -> None:
        self.seen.append(options)
        loop = asyncio.get_running_loop()
        serving = self.config.serving
        quorum = serving.quorum
        members = [member.name for member in self.config.members]
        least = options.min_members or (quorum.min_members if quorum else len(members))
        deadline = options.deadline or (quorum.deadline_ms / 1e3 if quorum else None)

        def settle(missing: dict[str, str], verdict: Verdict) -> None:
            for timer in lease.timers:
                timer.cancel()
            lease.used = tuple(member for member in members if member not in missing)
            done(Outcome(verdict, missing) if missing else COMPLETE)

        def arrive(member: str) -> None:
            arrived.add(member)
            if len(arrived) == len(members):
                missing = {m: self.failing[m] for m in members if m in self.failing}
                enough = len(members) - len(missing) >= least
                settle(missing, Verdict.PARTIAL if enough else Verdict.MEMBER_FAILED)

        def late(verdict: Verdict) -> None:
            missing = {m: "deadline passed" for m in members if m not in arrived} | {
                m: self.failing[m] for m in members if m in self.failing
            }
            if verdict is Verdict.TIMED_OUT or len(members) - len(missing) >= least:
                settle(missing, verdict)

        arrived: set[str] = set()
        for member in members:
            lease.timers.append(loop.call_later(self.delays.get(member, 0), arrive, member))
        if deadline is not None:
            lease.timers.append(loop.call_later(deadline - options.age, late, Verdict.PARTIAL))
        timeout = options.timeout or serving.timeout_ms / 1e3
        lease.timers.append(loop.call_later(timeout - options.age, late, Verdict.TIMED_OUT))

    def cancel(self, lease: ArrayLease) -> None:
        for timer in lease.timers:
            timer.cancel()
        self.in_flight -= 1

    def release(self, lease: ArrayLease) -> None:
        self.in_flight -= 1

    def health(self) -> Health:
        self.health_calls += 1
        cells = tuple(
            CellStatus(c.device, c.member, c.batch_size, "Ready", os.getpid(), 0, 5, 7, 0.25, 0, "core 0")
            for c in self.config.cells
        )
        waiting = {member.name: 0 for member in self.config.members}
        return Health(not self.reason, self.reason, cells, {"gateway": os.getpid()}, waiting)


@dataclass
class Response:
    """What came back over a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        size = self.headers.get("inference-header-content-length")
        return json.loads(self.body if size is None else self.body[: int(size)])

    @property
    def tensors(self) -> bytes:
        return self.body[int(self.headers["inference-header-content-length"]) :]


class Wire:
    """A raw connection: says bytes as they are, hears one response at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = self.socket.makefile("rb")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> Response | None:
        """The next response; None if the server has closed the connection."""
        line = self._heard.readline()
        if not line:
            return None
        assert line.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), line
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (field_line := self._heard.readline()) not in (b"\r\n", b""):
            name, _, value = field_line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        if status == 100:
            return Response(status, headers, b"")
        return Response(status, headers, self._heard.read(int(headers.get("content-length", "0"))))

    def close(self) -> None:
        self._heard.close()
        self.socket.close()


class Served:
    """A running gateway."""

    def __init__(self, pipeline: ArrayPipeline, address: tuple[str, int], stop: Callable[[], None]) -> None:
        self.pipeline = pipeline
        self.stop = stop
        self.config = pipeline.config
        self.address = address
        self.url = f"{address[0]}:{address[1]}"
        self.path = f"/v2/models/{self.config.name}/infer"

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        with closing(Wire(self.address)) as wire:
            yield wire

    def head(self, body: bytes, lane: str = "fast", *, path: str | None = None, **headers: Any) -> bytes:
        """The head of a POST; the aiohttp lane is chosen by a header that the fast lane does not serve."""
        fields = {"Host": self.url, "Content-Length": len(body)}
        if lane == "aiohttp":
            fields["Content-Encoding"] = "identity"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"POST {path or self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v is not None)]
        return "\r\n".join((*lines, "", "")).encode()

    def post(self, body: bytes, lane: str = "fast", *, path: str | None = None, **headers: Any) -> Response:
        """One POST on a connection of its own."""
        return self.exchange(self.head(body, lane, path=path, **headers) + body)

    def post_json(self, document: object, lane: str = "fast", **headers: Any) -> Response:
        return self.post(json.dumps(document).encode(), lane, **headers)

    def post_binary(self, document: object, tensors: bytes, lane: str = "fast", **headers: Any) -> Response:
        header = json.dumps(document).encode()
        headers = {"Inference_Header_Content_Length": len(header)} | headers
        return self.post(header + tensors, lane, **headers)

    def get(self, path: str, method: str = "GET") -> Response:
        return self.exchange(f"{method} {path} HTTP/1.1\r\nHost: {self.url}\r\n\r\n".encode())

    def exchange(self, data: bytes) -> Response:
        with self.wire() as wire:
            wire.say(data)
            response = wire.hear()
            assert response is not None, "the server closed the connection without a word"
            return response

    def idle(self) -> bool:
        """Wait, for some seconds at the most, until no request holds a lease."""
        waiter = threading.Event()
        for _ in range(500):
            if self.pipeline.in_flight == 0:
                return True
            waiter.wait(0.01)
        return False


@contextmanager
def running(config: RuntimeConfig) -> Iterator[Served]:
    """A gateway in a thread with an event loop of its own."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    pipeline = ArrayPipeline(config)
    failures: list[dict[str, Any]] = []
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    stopping = asyncio.Event()

    def stop() -> None:
        # Once it has ended, its loop is closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stopping.set)

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve(pipeline, sock, stopping))

    thread = threading.Thread(target=work)
    thread.start()
    served = Served(pipeline, address, stop)
    try:
        yield served
        assert served.idle(), "a request still holds a lease"
    finally:
        stop()
        thread.join(20)
    assert not thread.is_alive(), "the gateway did not end"
    assert not failures, failures


Starter = Callable[..., Served]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start a gateway whose configuration differs from the usual one as the arguments say."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(running(make_config(**changes)))


@pytest.fixture
def served(start: Starter) -> Served:
    """A gateway over three members, one FP32 input `x` and one output `y` of four columns."""
    return start()


@pytest.fixture(params=["fast", "aiohttp"])
def lane(request: pytest.FixtureRequest) -> str:
    """Which lane a request takes."""
    return str(request.param)
