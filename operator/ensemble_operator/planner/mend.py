"""Improvement of a large matrix, where the full neighbourhood is out of reach: prices say which cells to try.

A cell of member m on device d can help only if its time, at the device's price, is below the member's price; the
difference is what a row would save at first. One device stands for all that do the same, and only the best few changes
are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix
from ensemble_operator.planner.knapsack import refit
from ensemble_operator.planner.score import Scored, score
from ensemble_operator.planner.search import Budget

_TRIES = 12


def mend(instance: Instance, start: Scored, budget: Budget, enough: Callable[[Scored], bool]) -> Scored:
    """Add cells, or give whole devices to another member, while that raises the score and it is not `enough`."""
    at = start
    while budget.left() and not enough(at):
        better = None
        for matrix in _changes(instance, at):
            if not budget.left():
                break
            budget.spend()
            outcome = score(instance, matrix)
            if outcome.beats(at):
                better = outcome
                break
        if better is None:
            return at
        at = better
    return at


def _changes(instance: Instance, at: Scored) -> Iterator[Matrix]:
    """The most promising matrices: a cell more, a whole device for another member, a device packed tighter."""
    matrix, state = at.matrix, at.steady
    devices = _one_of_each(instance, matrix)
    kinds, there = instance.type_of[devices], matrix[devices] != 0
    free = (instance.capacity[instance.type_of] - instance.bytes_used(matrix))[devices]
    busy = np.bincount(state.cell_device, weights=state.busy, minlength=len(matrix))[devices]
    price = state.device_price[devices][:, None]
    idle = (1.05 - np.minimum(busy, 1.0))[:, None]

    # The largest batch that the free memory holds; memory rises with the option.
    fitting = np.where(there, 0, (instance.memory[kinds] <= free[:, None, None]).sum(axis=2))
    adds = _saving(instance, kinds, fitting, price, state.member_price) * idle
    for i, m in _top(adds):
        yield _with(matrix, devices[i], m, int(fitting[i, m]), alone=False)

    lonely = there & ((matrix != 0).sum(axis=0) == 1)
    fastest = np.where(there & (there.sum(axis=1) == 1)[:, None], 0, instance.options[kinds])
    gives = _saving(instance, kinds, fastest, price, state.member_price)
    for i, m in _top(np.where(lonely.sum(axis=1)[:, None] == lonely, gives, 0.0)):
        yield _with(matrix, devices[i], m, int(fastest[i, m]), alone=True)

    work = np.zeros(matrix.shape)
    work[state.cell_device, state.cell_member] = state.work
    for i, m in _top(np.where(there, 0.0, gives) * idle):
        d, share = devices[i], work[devices[i]].copy()
        tighter = _with(matrix, d, m, 1, alone=False)
        share[m] = idle[i, 0] * state.seconds / instance.seconds[kinds[i], m, fastest[i, m] - 1]
        if refit(instance, tighter, int(d), share):
            yield tighter


def _with(matrix: Matrix, device: int, member: int, option: int, *, alone: bool) -> Matrix:
    changed = matrix.copy()
    if alone:
        changed[device] = 0
    changed[device, member] = option
    return changed


def _one_of_each(instance: Instance, matrix: Matrix) -> Ints:
    keyed = np.column_stack([instance.type_of, matrix])
    return np.sort(np.unique(keyed, axis=0, return_index=True)[1])


def _saving(instance: Instance, kinds: Ints, option: Ints, price: Floats, worth: Floats) -> Floats:
    """(devices, M) what a row would save, per share of time that the new cell gets; 0 where there is no option."""
    columns = np.arange(option.shape[1])
    seconds = instance.seconds[kinds[:, None], columns, np.maximum(option - 1, 0)]
    saving = np.where(option > 0, worth / seconds - price, 0.0)
    return np.maximum(saving, 0.0)


def _top(value: Floats) -> list[tuple[int, int]]:
    order = np.argsort(-value, axis=None, kind="stable")[:_TRIES]
    return [(int(i), int(m)) for i, m in zip(*np.unravel_index(order, value.shape), strict=True) if value[i, m] > 0]
