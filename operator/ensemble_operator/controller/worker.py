"""Decisions are made in a process of their own, so that long planning stops neither watches nor probes."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from ensemble_operator.controller.mirror import Delta, difference, follow
from ensemble_runtime.errors import EnsembleError

Decide = Callable[[Mapping[Any, Any], float], Mapping[Any, Any]]
"""From the state and the moment (of the monotonic clock) by which planning has to end to the decisions."""

_GRACE_SECONDS = 30.0

_log = logging.getLogger(__name__)


class DecisionError(EnsembleError):
    """No decision could be made; the message says why."""


class Worker:
    """A process that is told what has changed, and tells which decisions change with it."""

    def __init__(self, make: Callable[[], Decide]) -> None:
        """Nothing is started yet.

        Args:
            make: Makes the function that decides, in the process; it has to be importable there.
        """
        self._make = make
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._known: dict[Hashable, Any] = {}
        self._decisions: dict[Hashable, Any] = {}

    async def decide(self, state: Mapping[Any, Any], seconds: float) -> Mapping[Any, Any]:
        """The decisions for a state.

        Args:
            state: All there is to know.
            seconds: Time to plan in. A process that overruns it by far is replaced.

        Raises:
            DecisionError: It failed, died, or did not end in time.
        """
        try:
            return await asyncio.to_thread(self._ask, dict(state), seconds)
        except (OSError, EOFError) as error:
            self.close()
            raise DecisionError(f"the planning process ended: {error or type(error).__name__}") from None

    def _ask(self, state: dict[Any, Any], seconds: float) -> Mapping[Any, Any]:
        connection = self._started()
        connection.send((difference(self._known, state), seconds))
        self._known = state
        if not connection.poll(seconds + _GRACE_SECONDS):
            self.close()
            raise DecisionError(
                f"planning did not end within {seconds + _GRACE_SECONDS:.0f} s; its process is replaced"
            )
        answer = connection.recv()
        if isinstance(answer, str):
            self.close()
            raise DecisionError(f"planning failed: {answer}")
        follow(self._decisions, answer)
        return dict(self._decisions)

    def _started(self) -> Connection:
        if self._connection is None:
            here, there = multiprocessing.Pipe()
            context = multiprocessing.get_context(
                "spawn"
            )  # a fork would take the event loop's threads and sockets along
            self._process = context.Process(target=_serve, args=(there, self._make, os.getpid()), daemon=True)
            self._process.start()
            there.close()
            self._connection = here
        return self._connection

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None
        self._known, self._decisions = {}, {}


def _serve(connection: Connection, make: Callable[[], Decide], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the operator ends this process when it is done
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    decide = make()
    state: dict[Any, Any] = {}
    told: dict[Any, Any] = {}
    while True:
        try:
            delta, seconds = connection.recv()
        except EOFError:
            return
        follow(state, delta)
        try:
            decisions = dict(decide(state, time.monotonic() + seconds))
        except Exception as error:  # whatever it was, the operator has to hear of it
            traceback.print_exc()
            connection.send(f"{type(error).__name__}: {error}")
            continue
        answer: Delta[Any, Any] = difference(told, decisions)
        connection.send(answer)
        told = decisions


def _end_with(parent: int) -> None:
    """End with the operator, also where that was killed in the middle of a plan."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
