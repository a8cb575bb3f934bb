"""Puts load on a server in a closed loop, and measures what comes back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.connection import connect
from ensemble_operator.cli.errors import ServerRefusedError
from ensemble_operator.cli.server import Server, reason
from ensemble_operator.cli.tensors import encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WARM_UP_SHARE = 0.2
_VARIABLE_DIMENSION = 16
_LONGEST_PAUSE_SECONDS = 1.0
_TICK_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Load:
    """What is sent."""

    connections: int
    """Each sends its next request when it has the answer to the last."""
    rows: int
    """Rows of each request."""
    seconds: float
    """How long is measured; a fifth of it is sent before, unmeasured, to warm up."""


@dataclass(frozen=True)
class Result:
    """What came back within the measured time."""

    load: Load
    requests: int
    refused: int
    """Answers 503, sent again after the pause that the server asked for."""
    latencies: tuple[float, ...]
    """Seconds of each answered request, rising."""

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second."""
        return self.requests * self.load.rows / self.load.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the requests was answered."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def document(self) -> dict[str, Any]:
        """Plain data: rates per second, latencies in milliseconds."""
        return {
            "connections": self.load.connections,
            "rowsPerRequest": self.load.rows,
            "seconds": self.load.seconds,
            "requests": self.requests,
            "refused": self.refused,
            "requestsPerSecond": self.requests / self.load.seconds,
            "rowsPerSecond": self.rows_per_second,
            "latencyMs": {
                name: self.percentile(share) * 1000 for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            },
        }


@dataclass
class _Tally:
    """Counts the answers that come while the pipeline is full.

    That is when the warm-up is over and as many answers came as requests are in flight; the rate before does not last.
    """

    load: Load
    warm: float
    """When the warm-up is over."""
    begin: float = math.inf
    answers: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def end(self) -> float:
        return self.begin + self.load.seconds

    def answered(self, sent: float, now: float) -> None:
        self.answers += 1
        if self.begin < now <= self.end:
            self.latencies.append(now - sent)
        elif self.begin == math.inf and now >= self.warm and self.answers >= self.load.connections:
            self.begin = now


def put_load(server: Server, load: Load, tick: Callable[[float], None] = lambda _: None) -> Result:
    """Send requests of random rows until the time is over.

    Args:
        server: Where to.
        load: How much.
        tick: Told now and then the share of the time that has passed, 0 to 1.

    Raises:
        ServerRefusedError: The server answered with an error, or with nothing in all that time.
        ServerUnreachableError: The connection broke.
    """
    try:
        return asyncio.run(_run(server, load, tick))
    except ExceptionGroup as group:  # what one connection meets, the others meet too
        raise group.exceptions[0] from None
    except TimeoutError:
        message = f"{server.base}: not enough answers within {_PATIENCE_SECONDS:g} s more than the time to measure"
        raise ServerRefusedError(message) from None


async def _run(server: Server, load: Load, tick: Callable[[float], None]) -> Result:
    request = encode(server, random_rows(server, load.rows), slice(None), {})
    start = time.perf_counter()
    expected = load.seconds * (1 + _WARM_UP_SHARE)
    tally = _Tally(load, start + load.seconds * _WARM_UP_SHARE)
    async with asyncio.timeout(expected + _PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(_tell(start, expected, tally, tick))
        for _ in range(load.connections):
            group.create_task(_send(server, request, tally))
    if not tally.latencies:
        raise ServerRefusedError(f"no answer within {load.seconds:g} s; measure for longer")
    return Result(load, len(tally.latencies), tally.refused, tuple(sorted(tally.latencies)))


async def _send(server: Server, request: bytes, tally: _Tally) -> None:
    connection = await connect(server.base)
    try:
        while (sent := time.perf_counter()) < tally.end:
            reply = await connection.request(request)
            if reply.status == 503:
                tally.refused += 1
                await asyncio.sleep(min(reply.retry_after or _TICK_SECONDS, _LONGEST_PAUSE_SECONDS))
            elif reply.status != 200:
                raise ServerRefusedError(f"{reply.status} {reason(reply.body)}")
            else:
                tally.answered(sent, time.perf_counter())
    finally:
        connection.close()


async def _tell(start: float, expected: float, tally: _Tally, tick: Callable[[float], None]) -> None:
    while (now := time.perf_counter()) < tally.end:
        tick(min((now - start) / expected, 1.0))
        await asyncio.sleep(_TICK_SECONDS)


def random_rows(server: Server, rows: int) -> dict[str, NDArray[np.generic]]:
    """Rows for every input, the same each time: fractions for floats, 0 and 1 for the rest, which index anything."""
    import numpy as np

    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.generic]] = {}
    for tensor in server.inputs:
        length = min(_VARIABLE_DIMENSION, tensor.max_length or _VARIABLE_DIMENSION)
        shape = (rows, *(length if dim == -1 else dim for dim in tensor.shape))
        dtype = np.dtype(tensor.datatype.numpy)
        values = random.random(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        arrays[tensor.name] = values.astype(dtype)
    return arrays
