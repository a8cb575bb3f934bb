"""The runtime's pipeline in a few arrays: what the latency model and the simulation both look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Matrix
from ensemble_operator.planner.throughput import Steady, lost, room


@dataclass(frozen=True)
class Cell:
    """A worker: it takes what its member's queue holds, up to `limit` rows, then waits for its device's turn."""

    device: int
    member: int
    limit: int
    share: float
    """Part of the member's rows that the plan gives to this cell."""
    seconds: Floats
    """(limit + 1,) seconds of a batch of so many rows; between measured batch sizes in proportion."""


@dataclass(frozen=True)
class Pipeline:
    """Cells of one matrix; every request goes to the queue of each member."""

    cells: tuple[Cell, ...]
    devices: int
    members: int


def pipeline(instance: Instance, matrix: Matrix, state: Steady) -> Pipeline:
    """The pipeline of a matrix in its steady state; an instance with every batch size shows small batches best.

    Where co-located members were measured to help or hinder each other, their batches are shortened or stretched by
    that.
    """
    share, later = room(instance, matrix), lost(instance, matrix, instance.type_of)
    cells = []
    for d, m, part in zip(state.cell_device, state.cell_member, state.work, strict=True):
        kind, option = instance.type_of[d], matrix[d, m] - 1
        known = range(int(instance.options[kind, m]))
        points = sorted((int(instance.batch[kind, m, k]), float(instance.seconds[kind, m, k])) for k in known)
        rows, each = np.array(points).T
        limit = int(instance.batch[kind, m, option])
        seconds = (np.interp(np.arange(limit + 1), rows, rows * each) + later[d, m]) / share[d]
        cells.append(Cell(int(d), int(m), limit, float(part), seconds))
    return Pipeline(tuple(cells), len(matrix), matrix.shape[1])
