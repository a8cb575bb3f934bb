"""The allocation problem as a mixed-integer program: the optimum of small instances, an upper bound for any.

For each device d, member m and option k: a binary says whether the cell is there, a real number which share of the
device's time it takes. Memory bounds the first, time the second, and the rate is what the worst-served member gets.
Where interference is measured the time to share depends on who is together; the programs here then grant every device
its type's best factor, so that their value stays an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix


@dataclass(frozen=True, slots=True)
class Exact:
    """What the integer program found within its node limit."""

    matrix: Matrix | None
    bound: float
    """No matrix has a higher rate, in rows per second."""


def most_room(instance: Instance) -> Floats:
    """(T,) the most time that a device of the type can have to share, whoever is on it."""
    upper = np.triu(instance.factor, 1)
    best: Floats = np.maximum(1.0, upper.reshape(len(upper), -1).max(axis=1))
    return best


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The linear relaxation: cells may be fractions, devices of one type are taken together. Quick at any size."""

    bound: float
    """No matrix has a higher rate, in rows per second."""
    time: Floats
    """(T, M) devices of the type that the member would keep busy."""


def relaxed(instance: Instance) -> Relaxed:
    """Solve the linear relaxation of the integer program.

    Raises:
        ValueError: Even in fractions the members do not fit into the memory.
    """
    t, m, k = (a.ravel() for a in np.indices(instance.seconds.shape))
    there = (k < instance.options[t, m]) & (instance.counts[t] > 0)
    result = _program(
        instance,
        kind=t[there],
        group=t[there],
        member=m[there],
        option=k[there],
        count=instance.counts.astype(np.float64),
        room=most_room(instance) * instance.counts,
    ).solve(integral=False, node_limit=0, gap=0.0)
    if result.x is None:
        raise ValueError("the relaxation has no solution")
    time = np.zeros(instance.options.shape)
    n = int(there.sum())
    np.add.at(time, (t[there], m[there]), result.x[n : 2 * n])
    return Relaxed(float(-result.fun), time)


def fewest(instance: Instance, rate: float) -> Ints | None:
    """(T,) the fewest devices, by type, on which the relaxed problem has the rate; None where it never has.

    No plan has the rate with fewer in all; whether one has it with these is for a search to say.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array, hstack

    t, m, k = (a.ravel() for a in np.indices(instance.seconds.shape))
    there = (k < instance.options[t, m]) & (instance.counts[t] > 0)
    t, m, k = t[there], m[there], k[there]
    types, ones = len(instance.counts), np.ones(len(instance.counts))
    model = _program(instance, kind=t, group=t, member=m, option=k, count=ones, room=most_room(instance))
    # Memory, time and cells of a pair are bounded by what one device offers, times the number of devices.
    pairs = np.unique(t * instance.shape[1] + m) // instance.shape[1]
    kind = np.concatenate([np.arange(types), np.arange(types), pairs])
    offered = coo_array((-model.upper[: len(kind)], (np.arange(len(kind)), kind)), shape=(len(model.upper), types))
    upper = np.concatenate([np.zeros(len(kind)), model.upper[len(kind) :]])
    width, least = len(model.cost), np.zeros(len(model.cost) + types)
    least[width - 1] = rate / model.scale
    result = milp(
        np.concatenate([np.zeros(width), np.ones(types)]),
        constraints=LinearConstraint(hstack([model.rows, offered]).tocsr(), model.lower, upper),
        bounds=Bounds(least, np.concatenate([np.full(width, np.inf), instance.counts])),
        integrality=np.concatenate([np.zeros(width), np.ones(types)]),
    )
    return None if result.x is None else np.round(result.x[width:]).astype(np.int64)


def exact(instance: Instance, *, node_limit: int, gap: float = 1e-4) -> Exact:
    """Solve the integer program.

    Args:
        instance: The problem; its node and move costs play no part.
        node_limit: Branch-and-bound nodes; with fewer than needed the bound is above the optimum.
        gap: Relative gap at which a solution counts as optimal.

    Returns:
        The best matrix found, and a bound.
    """
    kinds = instance.type_of
    d, m, k = (a.ravel() for a in np.indices((len(kinds), *instance.seconds.shape[1:])))
    there = k < instance.options[kinds[d], m]
    d, m, k = d[there], m[there], k[there]
    result = _program(
        instance,
        kind=kinds[d],
        group=d,
        member=m,
        option=k,
        count=np.ones(len(kinds)),
        room=most_room(instance)[kinds],
    ).solve(integral=True, node_limit=node_limit, gap=gap)
    bound = float(-result.mip_dual_bound) if result.mip_dual_bound is not None else float("inf")
    if result.x is None:
        return Exact(None, bound)
    matrix = np.zeros(instance.shape, np.int16)
    chosen = result.x[: len(d)] > 0.5
    matrix[d[chosen], m[chosen]] = k[chosen] + 1
    return Exact(matrix if instance.fits(matrix) else None, bound)


@dataclass(frozen=True)
class _Model:
    cost: Floats
    rows: Any
    lower: Floats
    upper: Floats
    most: Floats
    integer: Floats
    scale: float

    def solve(self, *, integral: bool, node_limit: int, gap: float) -> Any:
        """Minimise; objective and dual bound are given in rows per second."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        options: dict[str, float] = {"mip_rel_gap": gap, "node_limit": node_limit} if integral else {}
        result = milp(
            self.cost,
            constraints=LinearConstraint(self.rows, self.lower, self.upper),
            bounds=Bounds(np.zeros(len(self.cost)), self.most),
            integrality=self.integer if integral else np.zeros(len(self.cost)),
            options=options,
        )
        result.fun = None if result.fun is None else result.fun * self.scale
        if result.mip_dual_bound is not None:
            result.mip_dual_bound *= self.scale
        return result


def _program(
    instance: Instance, *, kind: Ints, group: Ints, member: Ints, option: Ints, count: Floats, room: Floats
) -> _Model:
    """Columns: cells there (N), their time (N), the rate. Groups are devices, or types with `count` devices each."""
    from scipy.sparse import coo_array, vstack

    n, groups, members = len(group), len(count), instance.shape[1]
    speed = 1.0 / instance.seconds[kind, member, option]
    best = np.zeros(members)
    np.maximum.at(best, member, speed * room[group])
    scale = float(best.min())
    held = instance.memory[kind, member, option] / instance.capacity[kind]
    each, one = np.arange(n), np.ones(n)
    width = 2 * n + 1

    def block(row: Ints, column: Ints, value: Floats, height: int) -> Any:
        return coo_array((value, (row, column)), shape=(height, width))

    pair = group * members + member
    pairs, where = np.unique(pair, return_inverse=True)
    blocks = [
        (block(group, each, held, groups), -np.inf, count),
        (block(group, each + n, one, groups), -np.inf, room),
        (block(where, each, one, len(pairs)), -np.inf, count[pairs // members]),
        (block(member, each, one, members), 1.0, np.inf),
        (block(np.tile(each, 2), np.arange(2 * n), np.concatenate([-one, one]), n), -np.inf, 0.0),
        (
            block(
                np.concatenate([member, np.arange(members)]),
                np.concatenate([each + n, np.full(members, 2 * n)]),
                np.concatenate([speed / scale, -np.ones(members)]),
                members,
            ),
            0.0,
            np.inf,
        ),
    ]
    heights = [b.shape[0] for b, _, _ in blocks]
    lower = np.concatenate([np.broadcast_to(low, h) for (_, low, _), h in zip(blocks, heights, strict=True)])
    upper = np.concatenate([np.broadcast_to(high, h) for (_, _, high), h in zip(blocks, heights, strict=True)])
    cost = np.zeros(width)
    cost[-1] = -1.0
    return _Model(
        cost=cost,
        rows=vstack([b for b, _, _ in blocks]).tocsr(),
        lower=lower,
        upper=upper,
        most=np.concatenate([count[group], count[group], [np.inf]]),
        integer=np.concatenate([np.ones(n), np.zeros(n + 1)]),
        scale=scale,
    )
