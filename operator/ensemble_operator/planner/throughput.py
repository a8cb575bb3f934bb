"""The rate that an allocation matrix can sustain: the optimum of its steady state.

Every member must do one unit of work per row; a cell (d, m) spends p[d, m] seconds of its device on it. With w the
share of member m's rows that the cell takes, the least time T per row is the linear program

    minimise T   such that   sum_d w[d, m] = 1 for each member,   sum_m p[d, m] * w[d, m] <= f[d] * T for each device,

and the rate is 1 / T. f is 1, or the measured interference factor where cells are co-located, or the number of devices
where identical ones are taken together. No cell can be busier than its whole time, whatever f. On cores p includes what
a batch loses after one of another member.

Solved by a primal simplex over a condensed dictionary: one cell of each member is expressed through the others, which
leaves cells - members + 1 columns, some ten or twenty; a solve takes a fraction of a millisecond where a call of a
general solver takes several. Its dual prices tell the search which changes can help at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix

_EPS = 1e-11
_GROUP_FROM = 33
"""Devices from which on it pays to look for like rows."""


@dataclass(frozen=True, slots=True)
class Steady:
    """The steady state of a matrix. N cells in row-major order of the matrix, D devices (or groups), M members."""

    seconds: float
    """Least time per row; the rate is its inverse."""
    cell_device: Ints
    cell_member: Ints
    work: Floats
    """(N,) share of the member's rows that the cell takes; sums to 1 for each member."""
    busy: Floats
    """(N,) share of its time that the cell is busy."""
    device_price: Floats
    """(D,) fraction of the time per row that one more unit of the device's time would save; 0 where it has time to
    spare."""
    member_price: Floats
    """(M,) seconds per row that the member accounts for; sums to `seconds`."""

    @property
    def rate(self) -> float:
        """Rows per second that every member sustains."""
        return 1.0 / self.seconds


def room(instance: Instance, matrix: Matrix) -> Floats:
    """(D,) the time that a device has to share: 1, or the mean factor over the pairs of members that it co-locates."""
    if not instance.interferes:
        return np.ones(len(matrix))
    there = (matrix != 0).astype(np.float64)
    pairs = np.einsum("dm,dmn,dn->d", there, instance.factor[instance.type_of], there)
    count = there.sum(axis=1)
    own = np.einsum("dm,dmm->d", there, instance.factor[instance.type_of])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 1, (pairs - own) / (count * (count - 1)), 1.0)


def lost(instance: Instance, matrix: Matrix, kinds: Ints) -> Floats:
    """(D, M) seconds that a batch takes longer for its device's other members, any of which may have gone before it."""
    there = (matrix != 0).astype(np.float64)
    others: Floats = np.maximum(there.sum(axis=1, keepdims=True) - 1, 1)
    mean: Floats = np.einsum("dmn,dn->dm", instance.lost[kinds], there) / others
    return mean


def _seconds(instance: Instance, matrix: Matrix, kinds: Ints) -> Floats:
    """(N,) seconds per row of each cell; `kinds` are the rows' types."""
    rows, columns = np.nonzero(matrix)
    at = kinds[rows], columns, matrix[rows, columns] - 1
    alone: Floats = instance.seconds[at]
    return alone + lost(instance, matrix, kinds)[rows, columns] / instance.batch[at] if instance.loses else alone


def steady(instance: Instance, matrix: Matrix) -> Steady:
    """The steady state of a matrix in which every member has a cell."""
    if len(matrix) > _GROUP_FROM:
        return _grouped(instance, matrix)
    rows, columns = np.nonzero(matrix)
    cost = _seconds(instance, matrix, instance.type_of)
    return solve(rows, columns, cost, room(instance, matrix), np.ones(len(matrix)), matrix.shape[1])


def _grouped(instance: Instance, matrix: Matrix) -> Steady:
    """The same with like devices that do the same taken as one: by symmetry they share alike."""
    keyed = np.ascontiguousarray(np.column_stack([instance.type_of.astype(np.int16), matrix]))
    whole = keyed.view(np.dtype((np.void, keyed.dtype.itemsize * keyed.shape[1])))[:, 0]
    _, first, group, count = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
    rows, columns = np.nonzero(matrix[first])
    kinds = instance.type_of[first]
    cost = _seconds(instance, matrix[first], kinds)
    share = room(instance, matrix)[first] * count
    small = solve(rows, columns, cost, share, count.astype(np.float64), matrix.shape[1])
    work, busy = np.zeros(matrix[first].shape), np.zeros(matrix[first].shape)
    work[rows, columns] = small.work / count[rows]
    busy[rows, columns] = small.busy / count[rows]
    device, member = np.nonzero(matrix)
    at = group[device], member
    return Steady(small.seconds, device, member, work[at], busy[at], small.device_price[group], small.member_price)


def solve(device: Ints, member: Ints, cost: Floats, share: Floats, count: Floats, members: int) -> Steady:
    """Solve the steady state of a list of cells.

    Args:
        device: (N,) device, or group of identical devices, of each cell.
        member: (N,) member of each cell; each member has at least one.
        cost: (N,) seconds per row of the cell.
        share: (D,) time that the device, or the whole group, has to share.
        count: (D,) devices in the group; no cell of it can be busy for more than that.
        members: How many members there are.

    Returns:
        The optimum with its prices.
    """
    key = _keys(device, member, cost, share, members)
    tight = np.flatnonzero(share[device] > count[device] * (1 + 1e-9))
    table, basis, ids = _dictionary(device, member, cost, share, count, key, tight)
    top = _optimise(table, basis, ids)
    return _read(table, basis, ids, top, (device, member, cost, share, tight), members)


def _keys(device: Ints, member: Ints, cost: Floats, share: Floats, members: int) -> Ints:
    """One cell of each member, such that no device is needlessly loaded: the heaviest member chooses first."""
    fastest = np.full(members, np.inf)
    np.minimum.at(fastest, member, cost)
    order = np.lexsort((cost, member))
    starts = np.searchsorted(member[order], np.arange(members + 1))
    load = np.zeros(len(share))
    key = np.empty(members, np.int64)
    for m in np.argsort(-fastest, kind="stable"):
        cells = order[starts[m] : starts[m + 1]]
        after = (load[device[cells]] + cost[cells]) / share[device[cells]]
        best = cells[int(np.argmin(after))]
        key[m] = best
        load[device[best]] += cost[best]
    return key


def _dictionary(
    device: Ints, member: Ints, cost: Floats, share: Floats, count: Floats, key: Ints, tight: Ints
) -> tuple[Floats, Ints, Ints]:
    """Basic variables as affine functions of the non-basic ones, constant first.

    Variables: 0..N-1 the cells' work, N..N+D-1 the devices' slack, then a slack for each cell that its own time limits,
    then T.
    """
    cells, devices, members = len(device), len(share), len(key)
    free = np.setdiff1d(np.arange(cells), key)
    height, width = members + devices + len(tight), 2 + len(free)
    table = np.zeros((height, width))
    column = np.arange(len(free)) + 2
    table[:members, 0] = 1.0
    table[member[free], column] = -1.0
    rows = members + np.arange(devices)
    table[rows, 1] = share
    np.add.at(table, (members + device[key], np.zeros(members, np.int64)), -cost[key])
    table[members + device[free], column] -= cost[free]
    np.add.at(table, (members + device[key[member[free]]], column), cost[key[member[free]]])
    for i, cell in enumerate(tight):
        row = members + devices + i
        table[row, 1] = count[device[cell]]
        if key[member[cell]] == cell:
            table[row] -= cost[cell] * table[member[cell]]
            table[row, 1] = count[device[cell]]
        else:
            table[row, 2 + int(np.searchsorted(free, cell))] = -cost[cell]
    basis = np.concatenate([key, cells + np.arange(devices + len(tight))])
    ids = np.concatenate([[cells + devices + len(tight)], free])
    return table, basis, ids


def _optimise(table: Floats, basis: Ints, ids: Ints) -> int:
    """Bring T into the basis at the least feasible value, then pivot until no column lowers it; returns T's row."""
    needs = np.where(table[:, 1] > 0, -table[:, 0] / np.where(table[:, 1] > 0, table[:, 1], 1.0), -np.inf)
    top = int(np.argmax(needs))
    _pivot(table, basis, ids, top, 1)
    for turn in range(50 * len(table)):
        gain = table[top, 1:]
        if turn < 5 * len(table):
            column = int(np.argmin(gain)) + 1
            if gain[column - 1] >= -_EPS * abs(table[top, 0]):
                break
        else:
            # Long runs only happen where pivots make no headway; Bland's rule cannot cycle.
            falling = np.flatnonzero(gain < -_EPS * abs(table[top, 0]))
            if not len(falling):
                break
            column = int(falling[np.argmin(ids[falling])]) + 1
        slope = table[:, column]
        down = slope < -_EPS
        down[top] = False
        if not down.any():
            break
        ratio = np.where(down, np.maximum(table[:, 0], 0.0) / np.where(down, -slope, 1.0), np.inf)
        least = ratio.min()
        ties = np.flatnonzero(ratio <= least * (1 + 1e-12))
        row = int(ties[np.argmin(basis[ties])]) if turn >= 5 * len(table) else int(ties[np.argmin(slope[ties])])
        _pivot(table, basis, ids, row, column)
    return top


def _pivot(table: Floats, basis: Ints, ids: Ints, row: int, column: int) -> None:
    fresh = table[row] / -table[row, column]
    fresh[column] = 1.0 / table[row, column]
    slope = table[:, column].copy()
    table[:, column] = 0.0
    table += np.outer(slope, fresh)
    table[row] = fresh
    basis[row], ids[column - 1] = ids[column - 1], basis[row]


def _read(
    table: Floats, basis: Ints, ids: Ints, top: int, cells: tuple[Ints, Ints, Floats, Floats, Ints], members: int
) -> Steady:
    device, member, cost, share, tight = cells
    count = len(device)
    value = np.zeros(count + len(share) + len(tight) + 1)
    value[basis] = table[:, 0]
    price = np.zeros(len(value))
    price[ids] = table[top, 1:]
    price = np.maximum(price, 0.0)
    seconds = float(table[top, 0])
    work = np.maximum(value[:count], 0.0)
    each = price[count : count + len(share)]
    per_cell = each[device]
    per_cell[tight] += price[count + len(share) : -1]
    member_price = np.full(members, np.inf)
    np.minimum.at(member_price, member, cost * per_cell)
    return Steady(seconds, device, member, work, work * cost / seconds, each, member_price)
