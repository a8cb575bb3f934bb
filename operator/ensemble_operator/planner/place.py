"""Which of several like devices does what: the rate is the same, the nodes crossed and the cells moved are not."""

from __future__ import annotations

import numpy as np

from ensemble_operator.planner.instance import Instance, Ints, Matrix


def settle(instance: Instance, matrix: Matrix) -> Matrix:
    """Exchange whole rows between devices of one type: few moves from the running cells, else few nodes.

    From a cold start, nodes are taken one by one, always the one that takes the most of the rows left, and rows that
    serve the same members go to the same node.
    """
    settled = np.zeros_like(matrix)
    for kind in range(len(instance.capacity)):
        rows = np.flatnonzero(instance.type_of == kind)
        if instance.problem.running:
            settled[rows] = matrix[rows][_least_moves(matrix[rows], instance.running[rows])]
    return settled if instance.problem.running else _gather(instance, matrix)


def _least_moves(rows: Matrix, running: Matrix) -> Ints:
    """For each device the row that it takes: an assignment problem."""
    from scipy.optimize import linear_sum_assignment

    cost = np.array([((rows != 0) & (rows != now)).sum(axis=1) for now in running])
    # Of equal assignments the one that leaves a row where the search put it.
    cost = cost * (len(rows) + 1) - np.eye(len(rows), dtype=np.int64)
    return np.asarray(linear_sum_assignment(cost)[1])


def _gather(instance: Instance, matrix: Matrix) -> Matrix:
    used = np.flatnonzero((matrix != 0).any(axis=1))
    waiting = {
        kind: sorted((d for d in used if instance.type_of[d] == kind), key=lambda d: _likeness(matrix[d]))
        for kind in range(len(instance.capacity))
    }
    places: dict[int, dict[int, list[int]]] = {}
    for d in range(len(matrix)):
        places.setdefault(int(instance.node_of[d]), {}).setdefault(int(instance.type_of[d]), []).append(d)
    settled = np.zeros_like(matrix)
    while any(waiting.values()):
        taken = max(places, key=lambda n: (sum(min(len(waiting[t]), len(ds)) for t, ds in places[n].items()), -n))
        for kind, devices in places.pop(taken).items():
            for device in devices[: len(waiting[kind])]:
                settled[device] = matrix[waiting[kind].pop(0)]
    return settled


def _likeness(row: Matrix) -> tuple[int, ...]:
    """Rows that serve the same members are neighbours in this order."""
    return (*np.flatnonzero(row).tolist(), -1, *row[row != 0].tolist())
