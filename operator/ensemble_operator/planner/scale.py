"""A first matrix for many devices: the linear relaxation, rounded.

The relaxation says how many devices of each type a member would keep busy. Whole devices are given to one member each,
at its best batch size; what is left over, less than one device a member and type, is packed together into the rest.
"""

from __future__ import annotations

import numpy as np

from ensemble_operator.planner.exact import Relaxed
from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix
from ensemble_operator.planner.knapsack import refit
from ensemble_operator.planner.pack import serve_the_rest


def rounded(instance: Instance, ideal: Relaxed) -> Matrix | None:
    """Round the relaxation to whole cells.

    Returns:
        A matrix, or None where the leftovers do not fit into the devices left.
    """
    matrix = np.zeros(instance.shape, np.int16)
    left = ideal.time - np.floor(ideal.time + 1e-9)
    for kind in range(len(instance.capacity)):
        devices = np.flatnonzero(instance.type_of == kind)
        whole = np.floor(ideal.time[kind] + 1e-9).astype(np.int64)
        owners = np.repeat(np.arange(len(whole)), whole)[: len(devices)]
        matrix[devices[: len(owners)], owners] = instance.options[kind, owners]
        _share_out(instance, matrix, devices[len(owners) :], left[kind], kind)
    return matrix if serve_the_rest(instance, matrix) else None


def _share_out(instance: Instance, matrix: Matrix, devices: Ints, left: Floats, kind: int) -> None:
    """Put fractions of devices together, the largest first; what exceeds the time left on a device is split off."""
    if not len(devices):
        return
    time, space = np.ones(len(devices)), np.full(len(devices), instance.capacity[kind])
    work = np.zeros((len(devices), len(left)))
    for m in np.argsort(-left, kind="stable"):
        rest, need = float(left[m]), instance.memory[kind, m, 0]
        while rest > 1e-3:
            # Where it fits whole, the fullest such device leaves the emptier ones to larger shares.
            fits = (space >= need) & (time > 1e-3) & (work[:, m] == 0)
            if not fits.any():
                break
            whole = fits & (time >= rest)
            d = int(np.argmin(np.where(whole, time, np.inf)) if whole.any() else np.argmax(np.where(fits, time, -1)))
            part = min(rest, float(time[d]))
            work[d, m], rest = part, rest - part
            time[d] -= part
            space[d] -= need
    for i, d in enumerate(devices):
        matrix[d] = work[i] > 0
        # Shares of time at the best batch size are proportional to rows times its seconds.
        fastest = instance.seconds[kind, np.arange(len(left)), np.maximum(instance.options[kind] - 1, 0)]
        refit(instance, matrix, int(d), np.where(work[i] > 0, work[i] / fastest, 0.0))
