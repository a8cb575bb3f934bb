"""How long requests take: a model of queueing and batching, quick enough to search with.

Requests arrive as a Poisson stream; every member gets each of them, so the cells of a device are busy together and take
turns. A device is therefore one server that works in rounds: in each, every cell there does one batch of what has come
to it. What waits when a round ends is a Markov chain; its stationary state, with the point within a round at which a
request arrives, gives the time until the request's own round is done. Cells of one member stand in for each other: a
request waits only while all of them are busy, and then for the first that comes free. The answer needs all devices that
do a part of it: the slowest of them, taken as independent.

Checked against the simulation of the same pipeline, which is exact and slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.instance import Floats, Ints
from ensemble_operator.planner.pipeline import Cell, Pipeline

_MOST_STATES = 128
_GRID = 400
_WITHIN = (np.arange(8) + 0.5) / 8
_NORMAL = np.array([-1.645, -0.842, -0.385, 0.0, 0.385, 0.842, 1.645])
_ODDS = np.array([0.1, 0.2, 0.133, 0.134, 0.133, 0.2, 0.1])
"""Points of the normal distribution that stand for the spread of how many requests come, and their probabilities."""


@dataclass(frozen=True, slots=True)
class _Server:
    """A device in its stationary state. One request here is one to its most used cell."""

    used: float
    """Part of all requests that need the device."""
    rate: float
    """Requests per second."""
    round: Floats
    """Seconds of a round of k requests, k from 0 to the most."""
    stay: Ints
    """By state: requests left waiting when its round begins."""
    taken: Ints
    """By state: requests in its round."""
    time: Floats
    """By state: part of the active time that is spent in it."""
    active: float
    """Part of all time in which the device works."""

    @property
    def most(self) -> int:
        """Most requests in one round."""
        return len(self.round) - 1


def quantile(pipeline: Pipeline, *, rate: float, request_rows: int, part: float = 0.99) -> float:
    """Seconds within which `part` of the requests are answered; infinite where the queues grow without end.

    Args:
        pipeline: Cells with their shares.
        rate: Rows per second that arrive.
        request_rows: Rows of each request.
        part: Which quantile.
    """
    on = [[c for c in pipeline.cells if c.device == d and c.share > 1e-9] for d in range(pipeline.devices)]
    servers: dict[int, _Server] = {}
    for device, cells in enumerate(on):
        if cells:
            server = _server(cells, rate / request_rows, request_rows)
            if server is None:
                return math.inf
            servers[device] = server
    times = [(server.used, *_times(pipeline, servers, device, on[device])) for device, server in servers.items()]
    grid = np.linspace(0.0, max(float(seconds.max()) for _, seconds, _ in times), _GRID)
    below = np.ones(_GRID)
    for used, seconds, weight in times:
        order = np.argsort(seconds)
        up_to = np.searchsorted(seconds[order], grid, side="right")
        below *= 1 - used * (1 - np.minimum(np.concatenate([[0.0], np.cumsum(weight[order])])[up_to], 1.0))
    return float(grid[min(int(np.searchsorted(below, part)), _GRID - 1)])


def _server(cells: list[Cell], requests: float, rows: int) -> _Server | None:
    """The stationary state of a device; None where it cannot keep up."""
    busiest = max(c.share for c in cells)
    batches = [max(1, c.limit // rows) * busiest / c.share for c in cells]
    most = max(1, min(_MOST_STATES // 2, int(max(batches))))
    parts = np.arange(most + 1, dtype=np.float64)
    turn: Floats = np.sum([_batches(c, parts * (c.share / busiest), rows) for c in cells], axis=0)
    rate = requests * busiest
    load = rate * turn[most] / most
    if load >= 0.999:
        return None
    states = min(_MOST_STATES, 2 * most + int(6 / (1 - load)) + 6)
    taken = np.minimum(np.maximum(np.arange(states), 1), most)
    stay = np.maximum(np.arange(states) - taken, 0)
    ends = _stationary(stay, rate * turn[taken])
    # Time, as opposed to ends of rounds: a state lasts for its round, and state 0 for the idle time before it as well.
    lasts, idle = ends * turn[taken], float(ends[0]) / rate
    used = 1 - math.prod(1 - min(c.share, 1.0) for c in cells)
    return _Server(used, rate, turn, stay, taken, lasts / lasts.sum(), 1 - idle / (float(lasts.sum()) + idle))


def _batches(cell: Cell, count: Floats, rows: int) -> Floats:
    """Seconds of a cell for so many requests; below one request, for the part of the rounds in which there is one."""
    whole = np.floor(count * rows / cell.limit)
    rest = count * rows - whole * cell.limit
    first = np.interp(np.maximum(rest, min(rows, cell.limit)), np.arange(cell.limit + 1), cell.seconds)
    part: Floats = whole * cell.seconds[cell.limit] + np.minimum(rest / min(rows, cell.limit), 1.0) * first
    return part


def _times(pipeline: Pipeline, servers: dict[int, _Server], device: int, cells: list[Cell]) -> tuple[Floats, Floats]:
    """Distribution of the time that a request takes on a device: seconds and their probabilities."""
    server = servers[device]
    # The cell with the fewest stand-ins decides how long the request waits.
    members = [c.member for c in cells if c.share >= 0.2 * max(c.share for c in cells)]
    stand_ins = [[c.device for c in pipeline.cells if c.member == m and c.device in servers] for m in members]
    fewest = min(stand_ins, key=len)
    # Sakasegawa's approximation of the chance that all of several servers are busy.
    active = sum(servers[d].active for d in fewest) / len(fewest)
    waits = active ** (math.sqrt(2 * (len(fewest) + 1)) - 1)
    mean = [float(servers[d].time @ servers[d].round[servers[d].taken]) for d in fewest]
    sooner = min(1.0, min(mean) / float(server.time @ server.round[server.taken]))
    seconds, weight = [server.round[1:2]], [np.array([1 - waits])]
    whole = min(c.share for c in cells) > 1 - 1e-9
    turn = server.round[server.taken]
    for point in _WITHIN:
        left = (1 - point ** (1 / len(fewest))) * turn * sooner
        # However soon a cell comes free, the batches are as large as what comes in a whole turn.
        before, after = server.rate * turn * point, server.rate * turn * (1 - point)
        come = np.maximum(0, np.round(before[:, None] + np.sqrt(before)[:, None] * _NORMAL))
        behind = server.stay[:, None] + come
        full = np.floor(behind / server.most)
        mine = np.clip(np.round(behind - full * server.most + 1 + after[:, None]), 1, server.most).astype(np.int64)
        # It joins the batches that the round has still to begin; after it come only those of members that had begun.
        begun = (math.floor(point * len(cells)) + 1) / len(cells) if whole else 1.0
        seconds.append((left[:, None] + full * server.round[server.most] + begun * server.round[mine]).ravel())
        weight.append((waits / len(_WITHIN) * server.time[:, None] * _ODDS).ravel())
    return np.concatenate(seconds), np.concatenate(weight)


def _stationary(stay: Ints, mean: Floats) -> Floats:
    """Stationary distribution of what waits at the end of a round: what stayed behind plus Poisson arrivals."""
    states = len(stay)
    count = np.arange(states)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, states)))])
    arrivals = np.exp(count * np.log(np.maximum(mean, 1e-300))[:, None] - mean[:, None] - log_factorial)
    at = count[None, :] - stay[:, None]
    step = np.where(at >= 0, np.take_along_axis(arrivals, np.maximum(at, 0), axis=1), 0.0)
    step[:, -1] += np.maximum(1 - step.sum(axis=1), 0.0)
    equations = step.T - np.eye(states)
    equations[-1] = 1.0
    kept: Floats = np.maximum(np.linalg.solve(equations, np.eye(states)[-1]), 0.0)
    total: float = kept.sum()
    return kept / total
