"""The pipeline played through, event by event, on its own clock: what the latency model is checked against."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.instance import Floats
from ensemble_operator.planner.pipeline import Pipeline


@dataclass(frozen=True)
class Played:
    """What came out of a simulation; the first tenth of the requests, in which queues fill, is left out."""

    latencies: Floats
    """Seconds from arrival to the last member's last row, by request."""
    rate: float
    """Rows per second that were answered."""

    def quantile(self, part: float) -> float:
        """Seconds within which that part of the requests was answered."""
        return float(np.quantile(self.latencies, part))


def poisson(
    pipeline: Pipeline, *, rate: float, request_rows: int, requests: int, seed: int = 0, keep_shares: bool = False
) -> Played:
    """Requests arrive as a Poisson stream.

    Args:
        pipeline: Cells and devices.
        rate: Rows per second.
        request_rows: Rows of each request.
        requests: How many requests to play.
        seed: Of the arrivals.
        keep_shares: A cell takes no more than its planned share of the member's rows and one batch; otherwise whoever
            is idle takes what is there.
    """
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(request_rows / rate, requests))
    return _Stage(pipeline, request_rows, keep_shares).play(arrivals.tolist(), clients=0)


def saturated(
    pipeline: Pipeline, *, clients: int, request_rows: int, requests: int, keep_shares: bool = False
) -> Played:
    """So many clients, each of which sends its next request when the last one is answered."""
    return _Stage(pipeline, request_rows, keep_shares).play([0.0] * min(clients, requests), clients=requests)


class _Stage:
    """State of one simulation."""

    def __init__(self, pipeline: Pipeline, request_rows: int, keep_shares: bool) -> None:
        self.cells, self.rows, self.keep_shares = pipeline.cells, request_rows, keep_shares
        self.arrived, self.taken = 0, [0] * len(pipeline.cells)
        self.of_member: list[list[int]] = [[] for _ in range(pipeline.members)]
        for i, cell in enumerate(self.cells):
            self.of_member[cell.member].append(i)
        self.idle = [deque(cells) for cells in self.of_member]
        self.queue: list[deque[list[int]]] = [deque() for _ in self.of_member]
        self.turn: list[deque[int]] = [deque() for _ in range(pipeline.devices)]
        self.held: list[list[tuple[int, int]]] = [[] for _ in self.cells]
        self.left: list[int] = []
        self.ends: list[tuple[float, int]] = []

    def play(self, arrivals: list[float], *, clients: int) -> Played:
        """Run until every request is answered; with `clients` each answer brings the next, up to so many requests."""
        came, gone = list(arrivals), [0.0] * len(arrivals)
        coming = 0
        while coming < len(came) or self.ends:
            if coming < len(came) and (not self.ends or came[coming] <= self.ends[0][0]):
                self._arrive(came[coming])
                coming += 1
                continue
            now, cell = heapq.heappop(self.ends)
            for request in self._finish(now, cell):
                gone[request] = now
                if len(came) < clients:
                    came.append(now)
                    gone.append(0.0)
        first = len(came) // 10
        ends = np.array(gone)
        spent = float(ends.max()) - float(np.sort(ends)[first])
        rate = (len(came) - first) * self.rows / spent if spent > 0 else float("inf")
        return Played(ends[first:] - np.array(came)[first:], rate)

    def _arrive(self, now: float) -> None:
        request = len(self.left)
        self.left.append(self.rows * len(self.queue))
        self.arrived += self.rows
        for member, queue in enumerate(self.queue):
            queue.append([request, self.rows])
            self._offer(now, member)

    def _offer(self, now: float, member: int) -> None:
        """Idle cells take from their member's queue, the one idle for longest first."""
        for cell in list(self.idle[member]):
            if not self.queue[member]:
                return
            ahead = self.taken[cell] - self.cells[cell].share * self.arrived
            if not self.keep_shares or ahead <= self.cells[cell].limit:
                self.idle[member].remove(cell)
                self._take(now, cell)

    def _take(self, now: float, cell: int) -> None:
        """The cell takes what is there, up to its limit, and waits for its device's turn."""
        worker, queue = self.cells[cell], self.queue[self.cells[cell].member]
        space, held = worker.limit, self.held[cell]
        while queue and space:
            request, rows = queue[0]
            taken = min(rows, space)
            space -= taken
            held.append((request, taken))
            self.taken[cell] += taken
            if taken == rows:
                queue.popleft()
            else:
                queue[0][1] = rows - taken
        turn = self.turn[worker.device]
        turn.append(cell)
        if len(turn) == 1:
            self._start(now, cell)

    def _start(self, now: float, cell: int) -> None:
        rows = sum(taken for _, taken in self.held[cell])
        heapq.heappush(self.ends, (now + float(self.cells[cell].seconds[rows]), cell))

    def _finish(self, now: float, cell: int) -> list[int]:
        """The batch is done: the device goes to the next in turn; requests that are complete are returned."""
        answered = []
        for request, rows in self.held[cell]:
            self.left[request] -= rows
            if not self.left[request]:
                answered.append(request)
        self.held[cell].clear()
        worker = self.cells[cell]
        turn = self.turn[worker.device]
        turn.popleft()
        if turn:
            self._start(now, turn[0])
        self.idle[worker.member].append(cell)
        self._offer(now, worker.member)
        return answered
