"""The gateway with nothing behind it: a pipeline that answers at once, so that what is measured is the gateway."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.gateway.server import serve
from ensemble_runtime.pipeline.port import COMPLETE, Health, Options, Outcome

ROWS = 4096
COLUMNS = 784
CLASSES = 10


class InstantLease:
    """Rows of the one input; the outputs are zeros."""

    __slots__ = ("_data", "rows")

    def __init__(self, data: memoryview, rows: int) -> None:
        self._data = data
        self.rows = rows

    def input(self, index: int) -> memoryview:
        """All rows."""
        return self._data[: self.rows * COLUMNS * 4]

    def output(self, index: int) -> NDArray[Any]:
        """The combined output."""
        return OUTPUTS[: self.rows]

    def member_output(self, member: str, index: int) -> NDArray[Any]:
        """A member's output."""
        return OUTPUTS[: self.rows]

    def disagreement(self) -> dict[str, NDArray[np.float32]]:
        """None is offered."""
        return {}


class InstantPipeline:
    """Answers in the next turn of the event loop."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.config = config
        self.max_rows = ROWS
        self.in_flight = 0
        self._loop = asyncio.get_running_loop()
        self._data = memoryview(bytearray(ROWS * COLUMNS * 4))

    def lease(self, rows: int, shapes: Sequence[tuple[int, ...]]) -> InstantLease:
        """There is always room: all requests share the same rows."""
        self.in_flight += 1
        return InstantLease(self._data, rows)

    def submit(self, lease: InstantLease, options: Options, done: Callable[[Outcome], None]) -> None:
        """The answer is there already."""
        self._loop.call_soon(done, COMPLETE)

    def cancel(self, lease: InstantLease) -> None:
        """The client has gone."""
        self.in_flight -= 1

    def release(self, lease: InstantLease) -> None:
        """The answer is out."""
        self.in_flight -= 1

    def health(self) -> Health:
        """Always ready."""
        return Health(True, "", (), {"gateway": os.getpid()}, {})


OUTPUTS = np.zeros((ROWS, CLASSES), np.float32)


def config() -> RuntimeConfig:
    """One member, which no process runs."""
    model = {"uri": "file://./none.onnx", "format": "ONNX"}
    return RuntimeConfig.model_validate(
        {
            "name": "tiny",
            "members": [{"name": "none", "model": model}],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}],
            "devices": [{"name": "cpu", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1}],
            "cells": [{"device": "cpu", "member": "none", "batchSize": 1}],
        }
    )


async def main(port: int) -> None:
    """Serve until killed."""
    await serve(InstantPipeline(config()), socket.create_server(("127.0.0.1", port)), asyncio.Event())


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
