"""Batch sizes of the members that share one device: least time under its memory.

A multiple-choice knapsack, solved over the frontier of (bytes, time) pairs that no other pair beats in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Matrix

_FRONTIER = 48
"""Longer frontiers are thinned: exact for a few members, within a hair for many."""


def best_options(instance: Instance, kind: int, members: Sequence[int], work: Floats) -> list[int] | None:
    """Choose an option for each member of one device.

    Args:
        instance: The problem.
        kind: The device's type.
        members: Who is there.
        work: (M,) rows of each member that the device does for a row of the ensemble.

    Returns:
        An option for each of `members`, or None where even the least memory is too much or the type cannot run one of
        them.
    """
    capacity = instance.capacity[kind]
    bytes_, time = np.zeros(1, np.int64), np.zeros(1)
    floors = instance.memory[kind, members, 0]
    if not instance.options[kind, members].all() or floors.sum() > capacity:
        return None
    rest = int(floors.sum())
    steps: list[tuple[np.ndarray, int]] = []
    for m, floor in zip(members, floors.tolist(), strict=True):
        rest -= floor
        n = int(instance.options[kind, m])
        total = (bytes_[:, None] + instance.memory[kind, m, :n]).ravel()
        spent = (time[:, None] + work[m] * instance.seconds[kind, m, :n]).ravel()
        order = np.argsort(total, kind="stable")
        order = order[: int(np.searchsorted(total[order], capacity - rest, side="right"))]
        falling = spent[order]
        order = order[np.concatenate([[True], falling[1:] < np.minimum.accumulate(falling)[:-1]])]
        if len(order) > _FRONTIER:
            order = order[np.linspace(0, len(order) - 1, _FRONTIER).astype(np.int64)]
        bytes_, time = total[order], spent[order]
        steps.append((order, n))
    at = len(time) - 1
    chosen: list[int] = []
    for order, n in reversed(steps):
        at, option = divmod(int(order[at]), n)
        chosen.append(option)
    return chosen[::-1]


def refit(instance: Instance, matrix: Matrix, device: int, work: Floats) -> bool:
    """Choose the batch sizes of one row anew, in place; False, and nothing changed, where its members do not fit."""
    members = np.flatnonzero(matrix[device])
    options = best_options(instance, int(instance.type_of[device]), members.tolist(), work)
    if options is None:
        return False
    matrix[device, members] = np.asarray(options, np.int16) + 1
    return True
