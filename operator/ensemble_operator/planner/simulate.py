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


def poisson(pipeline: Pipeline, *, rate: float, request_rows: int, requests: int, seed: int = 0) -> Played:
    """Requests arrive as a Poisson stream.

    Args:
        pipeline: Cells and devices.
        rate: Rows per second.
        request_rows: Rows of each request.
        requests: How many requests to play.
        seed: Of the arrivals.
    """
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(request_rows / rate, requests))
    return _Stage(pipeline, request_rows).play(arrivals.tolist(), clients=0)


def saturated(pipeline: Pipeline, *, clients: int, request_rows: int, requests: int) -> Played:
    """So many clients, each of which sends its next request when the last one is answered."""
    return _Stage(pipeline, request_rows).play([0.0] * min(clients, requests), clients=requests)


class _Stage:
    """State of one simulation: a device does one batch at a time, for the member that is furthest behind."""

    def __init__(self, pipeline: Pipeline, request_rows: int) -> None:
        self.cells, self.rows = pipeline.cells, request_rows
        self.of_device: list[list[int]] = [[] for _ in range(pipeline.devices)]
        segment = [request_rows] * pipeline.members
        for i, cell in enumerate(self.cells):
            self.of_device[cell.device].append(i)
            segment[cell.member] = min(segment[cell.member], cell.limit)
        self.entries = [
            [size] * (request_rows // size) + [request_rows % size] * (request_rows % size > 0) for size in segment
        ]
        """Rows of the entries that a request puts into each member's queue."""
        self.queue: list[deque[tuple[int, int]]] = [deque() for _ in segment]
        self.waiting = [0] * pipeline.members
        self.idle = dict.fromkeys(device for device, cells in enumerate(self.of_device) if cells)
        """Devices without a batch, the one that has been so for longest first."""
        self.held: list[list[tuple[int, int]]] = [[] for _ in self.cells]
        self.left: list[int] = []
        self.ends: list[tuple[float, int]] = []

    def play(self, arrivals: list[float], *, clients: int) -> Played:
        """Run until every request is answered; with `clients` each answer brings the next, up to so many requests."""
        came, gone = list(arrivals), [0.0] * len(arrivals)
        coming = 0
        while coming < len(came) or self.ends:
            if coming < len(came) and (not self.ends or came[coming] <= self.ends[0][0]):
                self._arrive()
                now = came[coming]
                coming += 1
            else:
                now, cell = heapq.heappop(self.ends)
                for request in self._finish(cell):
                    gone[request] = now
                    if len(came) < clients:
                        came.append(now)
                        gone.append(0.0)
            if coming == len(came) or came[coming] > now:  # whoever comes at the same moment is there already
                for device in list(self.idle):
                    self._begin(now, device)
        first = len(came) // 10
        ends = np.array(gone)
        spent = float(ends.max()) - float(np.sort(ends)[first])
        rate = (len(came) - first) * self.rows / spent if spent > 0 else float("inf")
        return Played(ends[first:] - np.array(came)[first:], rate)

    def _arrive(self) -> None:
        request = len(self.left)
        self.left.append(self.rows * len(self.queue))
        for member, queue in enumerate(self.queue):
            queue.extend((request, rows) for rows in self.entries[member])
            self.waiting[member] += self.rows

    def _begin(self, now: float, device: int) -> None:
        """An idle device starts a batch of the member that most rows wait for, if any wait for it."""
        able = [c for c in self.of_device[device] if self.waiting[self.cells[c].member]]
        if able:
            cell = max(able, key=lambda c: self.waiting[self.cells[c].member])
            self._take(cell)
            del self.idle[device]
            rows = sum(taken for _, taken in self.held[cell])
            heapq.heappush(self.ends, (now + float(self.cells[cell].seconds[rows]), cell))

    def _take(self, cell: int) -> None:
        """The cell takes what is there up to its limit, and leaves their part to others that are idle."""
        worker = self.cells[cell]
        queue, held, space = self.queue[worker.member], self.held[cell], worker.limit
        takers = sum(any(self.cells[c].member == worker.member for c in self.of_device[d]) for d in self.idle)
        for _ in range(-(-len(queue) // takers)):
            if queue[0][1] > space:
                return
            request, rows = queue.popleft()
            held.append((request, rows))
            space -= rows
            self.waiting[worker.member] -= rows

    def _finish(self, cell: int) -> list[int]:
        """The batch is done and its device idle; requests that are complete are returned."""
        answered = []
        for request, rows in self.held[cell]:
            self.left[request] -= rows
            if not self.left[request]:
                answered.append(request)
        self.held[cell].clear()
        self.idle[self.cells[cell].device] = None
        return answered
