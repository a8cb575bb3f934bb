"""Packing: a first matrix in which every member has one cell and no device is over its memory.

Worst-fit-decreasing, as in the paper: the largest member first, onto the device with the most free memory, GPUs before
CPUs. It can fail although everything fits; then an integer program packs exactly, and says by how many MiB it falls
short if nothing does.
"""

from __future__ import annotations

import numpy as np

from ensemble_operator.planner.instance import Instance, Ints, Matrix, mib
from ensemble_runtime.errors import OutOfMemoryError

EXACT_PACK_NODES = 20_000


def pack(instance: Instance) -> Matrix:
    """A matrix with one cell a member, at the least memory, that fits whenever anything does.

    Raises:
        OutOfMemoryError: The members do not fit; the message states the shortfall.
    """
    found = worst_fit(instance)
    return found if found is not None else exact_fit(instance)


def worst_fit(instance: Instance, *, level: int = 0) -> Matrix | None:
    """Worst-fit-decreasing at each member's `level`-th option (or its largest), the least memory first.

    Returns:
        The matrix, or None where this order of packing does not fit.
    """
    matrix = np.zeros(instance.shape, np.int16)
    free = instance.capacity[instance.type_of].copy()
    cpu = instance.is_cpu[instance.type_of]
    size, option = _sizes(instance, level)
    able = size < 2**62
    for m in np.argsort(-np.where(able, size, 0).max(axis=0), kind="stable"):
        need = size[instance.type_of, m]
        fits = need <= free
        gpu = fits & ~cpu
        choice = gpu if gpu.any() else fits
        if not choice.any():
            return None
        d = int(np.argmax(np.where(choice, free, -1)))
        matrix[d, m] = option[instance.type_of[d], m] + 1
        free[d] -= need[d]
    return matrix


def _sizes(instance: Instance, level: int) -> tuple[Ints, Ints]:
    """(T, M) bytes at the level's option, and the option; 2**62 bytes where the type cannot run the member."""
    option = np.clip(instance.options - 1, 0, level)
    return np.take_along_axis(instance.memory, option[..., None], axis=2)[..., 0], option


def exact_fit(instance: Instance) -> Matrix:
    """Pack by integer programming: least bytes over the devices' memory; 0 means that everything fits.

    Raises:
        OutOfMemoryError: It does not fit; the message states the shortfall in MiB.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array, hstack

    size, option = _sizes(instance, 0)
    rows, columns = np.nonzero(instance.options[instance.type_of] > 0)
    need = np.array([mib(int(b)) for b in size[instance.type_of[rows], columns]], np.float64)
    devices, members = instance.shape
    n, ones = len(rows), np.ones(len(rows))
    once = coo_array((ones, (columns, np.arange(n))), shape=(members, n + devices))
    used = coo_array((need, (rows, np.arange(n))), shape=(devices, n))
    over = hstack([used, coo_array((-np.ones(devices), (np.arange(devices), np.arange(devices))))])
    have = instance.capacity[instance.type_of] // 2**20
    result = milp(
        np.concatenate([np.zeros(n), np.ones(devices)]),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(over, -np.inf, have)],
        integrality=np.concatenate([np.ones(n), np.zeros(devices)]),
        bounds=Bounds(np.zeros(n + devices), np.concatenate([np.ones(n), np.full(devices, np.inf)])),
        options={"node_limit": EXACT_PACK_NODES},
    )
    if result.x is None or result.fun > 0.5:
        proven = result.status == 0
        short = f"{round(result.fun)} MiB" if result.x is not None else "an unknown amount"
        total = sum(mib(int(b)) for b in np.where(instance.options > 0, size, 2**62).min(axis=0))
        raise OutOfMemoryError(
            f"the members do not fit: they need {total} MiB at their smallest batch sizes, the {devices} devices have "
            f"{int(have.sum())} MiB; the best packing {'' if proven else 'found '}is short of {short}. Add a device, "
            "permit smaller batch sizes, or drop a member"
        )
    matrix = np.zeros(instance.shape, np.int16)
    chosen = result.x[:n] > 0.5
    matrix[rows[chosen], columns[chosen]] = option[instance.type_of[rows], columns][chosen] + 1
    return matrix


def serve_the_rest(instance: Instance, matrix: Matrix) -> bool:
    """Give members without a cell one at the least memory, where that is fastest; False if one fits nowhere."""
    for m in np.flatnonzero((matrix == 0).all(axis=0)):
        free = instance.capacity[instance.type_of] - instance.bytes_used(matrix)
        fits = instance.memory[instance.type_of, m, 0] <= free
        if not fits.any():
            return False
        matrix[int(np.argmin(np.where(fits, instance.seconds[instance.type_of, m, 0], np.inf))), m] = 1
    return True
