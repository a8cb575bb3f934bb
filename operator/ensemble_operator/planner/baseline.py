"""What a plan is compared with: the best batch sizes, one worker a member, and nothing else."""

from __future__ import annotations

import numpy as np

from ensemble_operator.planner.instance import Instance, Matrix
from ensemble_operator.planner.knapsack import refit


def baseline(instance: Instance, packed: Matrix) -> Matrix:
    """Every member stays where packing put it, with as many rows a batch as make its device's turn the shortest."""
    matrix = packed.copy()
    for device in range(len(matrix)):
        refit(instance, matrix, device, np.ones(matrix.shape[1]))
    return matrix
