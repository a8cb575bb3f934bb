"""How good a matrix is, in logarithms, so that every cost is a fraction of the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.instance import Instance, Matrix
from ensemble_operator.planner.throughput import Steady, steady

CELL_WORTH = 1e-3
"""Dropping cells may cost this fraction of the rate in all."""
MOST_TO_PRUNE = 32
"""Above so many devices only idle cells are dropped."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A matrix with its steady state and its score; compare scores only within one problem."""

    matrix: Matrix
    steady: Steady
    score: float
    slack: float
    """Device time left over: of two equal scores the one with more of it is nearer to a better one."""

    def beats(self, other: Scored) -> bool:
        """Whether it is better, by more than rounding, or as good with more time to spare."""
        if abs(self.score - other.score) > 1e-9:
            return self.score > other.score
        return self.slack > other.slack + 1e-6


def costs(instance: Instance, matrix: Matrix) -> float:
    """What nodes and moves take off the logarithm of the rate."""
    cost = 0.0
    if instance.nodes > 1:
        used = np.bincount(instance.node_of[(matrix != 0).any(axis=1)], minlength=1)
        cost = instance.problem.node_cost * (np.count_nonzero(used) - 1)
    if instance.problem.running:
        cost += instance.problem.move_cost * moves(instance, matrix)
    return cost


def moves(instance: Instance, matrix: Matrix) -> int:
    """Cells that would have to be started or changed."""
    return int(((matrix != 0) & (matrix != instance.running)).sum())


def prune(instance: Instance, found: Scored) -> Scored:
    """Drop the cells that are not worth their memory: idle ones at once, then those whose loss costs next to nothing.

    An idle cell is worse than useless: cells pull work by themselves, so it would take turns from its device's other
    cells.
    """
    matrix, idle = found.matrix.copy(), found.steady.busy < 1e-6
    matrix[found.steady.cell_device[idle], found.steady.cell_member[idle]] = 0
    at = score(instance, matrix)
    floor = found.score - CELL_WORTH
    dropped = len(matrix) <= MOST_TO_PRUNE
    while dropped:
        dropped, state = False, at.steady
        several = np.flatnonzero(np.count_nonzero(at.matrix, axis=0)[state.cell_member] > 1)
        for cell in several[np.argsort(state.busy[several], kind="stable")]:
            matrix = at.matrix.copy()
            matrix[state.cell_device[cell], state.cell_member[cell]] = 0
            less = score(instance, matrix)
            if less.score >= floor:
                at, dropped = less, True
                break
    return at


def score(instance: Instance, matrix: Matrix) -> Scored:
    """Score a matrix in which every member has a cell."""
    state = steady(instance, matrix)
    return Scored(matrix, state, -math.log(state.seconds) - costs(instance, matrix), -float(state.busy.sum()))
