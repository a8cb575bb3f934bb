"""Requests at a steady rate while something happens: every answer is checked, every failure is kept."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from beds.conntrack import destination
from beds.models import CLASSES, COLUMNS
from beds.processes import wait_for

Rows = NDArray[np.float32]
TIMEOUT_SECONDS = 10.0
WRONG = "a wrong answer"


@dataclass(frozen=True)
class Failure:
    """A request that got no right answer.

    Attributes:
        sent, ended: Seconds since the load began.
        reason: What the client saw: a status and a body, a lost connection, a wrong answer.
        kept_alive: Whether its client keeps one connection for all its requests.
        led_to: The pod's address that kube-proxy led its connection to, as far as the kernel remembers: not of one
            that was refused, as no pod does that listens.
    """

    sent: float
    ended: float
    reason: str
    kept_alive: bool
    led_to: str | None


class _Connection(http.client.HTTPConnection):
    """A connection that knows its own port, also where it is refused."""

    own_port = 0

    def connect(self) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(self.timeout)
        self.sock.bind(("", 0))
        self.own_port = self.sock.getsockname()[1]
        self.sock.connect((self.host, self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Load:
    """A context manager; half of its clients keep their connections, the others open one for each request.

    Attributes:
        failures: Of all requests so far.
    """

    def __init__(
        self,
        url: str,
        right: Callable[[Rows, Rows], bool],
        *,
        clients: int = 4,
        per_second: float = 40.0,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: Where to POST, up to `/infer`.
            right: Whether an answer is right for these rows.
            clients: Threads.
            per_second: Requests, by all clients together.
            timeout: Seconds that a client waits for an answer.
        """
        self.failures: list[Failure] = []
        self._where = urlsplit(url)
        self._right = right
        self._pause = clients / per_second
        self._timeout = timeout
        self._answered: list[float] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._start

    @property
    def answered(self) -> int:
        """Right answers so far."""
        return len(self._answered)

    def more(self, count: int = 40, seconds: float = 60.0) -> None:
        """Wait for so many further right answers.

        Raises:
            TimeoutError: They do not come in time; the message ends with the last failures.
        """
        goal = self.answered + count
        try:
            wait_for(lambda: self.answered >= goal, f"{count} right answers more", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.summary()}") from None

    def gap(self) -> float:
        """The longest time without a right answer, in seconds."""
        times = sorted(self._answered)
        return max((b - a for a, b in pairwise(times)), default=self.now)

    def spared(self, *pods: Mapping[str, Any]) -> bool:
        """Whether no answer was wrong, and nothing failed that was led to these pods."""
        addresses = {pod["status"]["podIP"] for pod in pods}
        return not any(f.led_to in addresses or f.reason.startswith(WRONG) for f in self.failures)

    def summary(self) -> str:
        """Figures, and the first and last failures."""
        shown = self.failures if len(self.failures) <= 6 else [*self.failures[:3], *self.failures[-3:]]
        lines = [
            f"  {f.sent:.2f} to {f.ended:.2f} s, kept alive {f.kept_alive}, to {f.led_to}: {f.reason}" for f in shown
        ]
        head = f"{self.answered} right answers, {len(self.failures)} failures in {self.now:.1f} s"
        return "\n".join([head, *lines])

    def _run(self, number: int) -> None:
        """One client: a request every so often, at its own times whatever the answers take."""
        kept_alive = number % 2 == 0
        random = np.random.default_rng(number)
        due = self._start + self._pause * number / len(self._threads)
        connection: _Connection | None = None
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - self._pause)
            rows = random.normal(size=(1 + number, COLUMNS)).astype(np.float32)
            connection = connection or _Connection(self._where.netloc, timeout=self._timeout)
            sent = self.now
            try:
                reason = self._ask(connection, rows)
            except (OSError, http.client.HTTPException) as error:
                reason = repr(error)
            if reason is None:
                self._answered.append(self.now)
            else:
                led_to = destination(connection.own_port)
                self.failures.append(Failure(sent, self.now, reason, kept_alive, led_to))
            if reason is not None or not kept_alive:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, rows: Rows) -> str | None:
        """One request; what is wrong with its answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist()}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", self._where.path, json.dumps({"inputs": [tensor]}), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return f"{answer.status}: {body[:500].decode(errors='replace')}"
        (output,) = json.loads(body)["outputs"]
        predicted = np.asarray(output["data"], np.float32).reshape(-1, CLASSES)
        return None if self._right(rows, predicted) else f"{WRONG}: {predicted.tolist()} for {rows.tolist()}"
