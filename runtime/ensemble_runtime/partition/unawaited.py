"""Runs of ONNX Runtime on a GPU that are queued and not awaited, and what has to happen to them in the end.

A recurrent operator copies the lengths of its rows to the GPU in every run, from memory of its own, which ONNX Runtime
has given back only behind a run that is to be awaited (`core/framework/device_stream_collection.cc`, CleanUp). Until
then it grows; and where a session is closed before it is back, that happens within a callback of CUDA's, where CUDA
permits no such call, and the process is aborted (`core/providers/cuda/cuda_stream_handle.cc`; seen on an H200 with ONNX
Runtime 1.31). So the last run of each session is done once more, in the other way: now and then, and before anybody can
close the session. ONNX Runtime does not wait for a stream that is not its own all the same; that is done here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ensemble_runtime.devices.cuda import Cuda, CudaError, Stream
from ensemble_runtime.partition.sessions import call

Calls = dict[int, tuple[Callable[[], None], object]]
"""By session, its last run that was not awaited, to be done again, with the session and what this reads and writes."""


class Unawaited:
    """The sessions that have runs which nobody has awaited."""

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        """Have none yet; they compute on a stream."""
        self._calls: Calls = {}
        self._settle = partial(_settle, self._calls, cuda, stream)
        # It holds sessions and memory, and so comes first, also where the process ends.
        weakref.finalize(self, self._settle)

    def run(self, session: Any, binding: Any, memory: object) -> Callable[[], None]:
        """A session's run of what is bound, as `call`, that is queued and not awaited.

        Args:
            session: All of whose operators compute on the GPU.
            binding: Its inputs and outputs.
            memory: Where these are; kept for as long as the run may be done again.
        """
        calls, key = self._calls, id(session)
        again = call(session, binding), (session, memory)
        ahead = call(session, binding, ahead=True)

        def queue() -> None:
            calls[key] = again  # also if it fails: then it has copied, too
            ahead()

        return queue

    def settle(self) -> None:
        """Do the last run of each session again, and wait for it."""
        self._settle()


def _settle(calls: Calls, cuda: Cuda, stream: Stream) -> None:
    if not calls:
        return
    for again, _ in calls.values():
        with suppress(Exception):  # what has failed fails again; it is told of elsewhere
            again()
    with suppress(CudaError):
        cuda.enter()  # whichever thread it is
        stream.finish()
    calls.clear()
