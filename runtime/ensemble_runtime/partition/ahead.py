"""A GPU's runs of a batch, queued ahead: its process waits for the cores where a run needs them, for the GPU when done.

What a run has made for the cores is there when its copy has arrived; the gate that tells so is opened by whoever looks:
this process, between two runs and while it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ensemble_runtime.devices.cuda import CudaError, Event
from ensemble_runtime.partition.gates import Bells
from ensemble_runtime.partition.gpu import Computation, Gpu, Uploads


class Ahead(NamedTuple):
    """A run on the GPU."""

    wait: int | None
    """The gate to wait for."""
    computation: Computation
    tell: int | None
    """The gate to open when what the run has made is in the host's memory."""


def walk_ahead(
    uploads: Uploads, steps: Sequence[Ahead], gpu: Gpu, bells: Bells, gates: memoryview, turn: int
) -> BaseException | None:
    """Have the GPU compute its runs in order; returns when all is done, with what went wrong.

    After a failure nothing more is queued, but every gate is opened, so that the other device gets through. A GPU that
    has failed itself is of no more use to this process: that failure is a SystemExit.
    """
    leaving = _Leaving(bells, gates, turn)
    failure: BaseException | None = None
    try:
        gpu.cuda.enter()
        uploads.begin()
    except CudaError as error:
        failure = error
    for wait, computation, tell in steps:
        leaving.look()
        if wait is not None:
            leaving.wait(wait)
        if failure is None:
            try:
                computation.queue()
            except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
                failure = error
        if tell is not None:
            leaving.add(computation.left, tell)
    leaving.finish()
    try:
        gpu.finish()
    except CudaError as error:
        return SystemExit(f"the GPU is lost: {error}")
    return failure


class _Leaving:
    """Gates that open as copies to the host arrive, which they do in the order in which they were queued."""

    def __init__(self, bells: Bells, gates: memoryview, turn: int) -> None:
        self._bells, self._gates, self._turn = bells, gates, turn
        self._waiting: deque[tuple[Event, int]] = deque()

    def add(self, event: Event, gate: int) -> None:
        """Open a gate once an event has passed. Of a run that was not queued it has: it is that of an earlier batch."""
        self._waiting.append((event, gate))

    def look(self) -> None:
        """Open the gates whose events have passed."""
        while self._waiting and _passed(self._waiting[0][0]):
            self._open()

    def wait(self, gate: int) -> None:
        """Wait for a gate of the other device, which may itself wait for these."""
        while self._waiting and not self._bells.seen(self._gates, gate, self._turn):
            self.look()
        self._bells.wait(self._gates, gate, self._turn)

    def finish(self) -> None:
        """Open all of them, each in its time."""
        while self._waiting:
            _awaited(self._waiting[0][0])
            self._open()

    def _open(self) -> None:
        self._bells.open(self._gates, self._waiting.popleft()[1], self._turn)


def _passed(event: Event) -> bool:
    try:
        return event.passed()
    except CudaError:  # nothing arrives any more; what has failed is told in the end
        return True


def _awaited(event: Event) -> None:
    with suppress(CudaError):  # as above
        event.wait()
