"""The search for a better matrix: the paper's bounded greedy over one-cell changes, then a local search beyond it.

The local search moves, copies, drops and exchanges cells, chooses the batch sizes of every device that it touches anew,
and shakes the best matrix when nothing improves it. Weak duality prunes: with the prices of the current steady state a
changed matrix can be bounded in microseconds, and most changes cannot help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ensemble_operator.planner.instance import Floats, Instance, Matrix
from ensemble_operator.planner.knapsack import refit
from ensemble_operator.planner.score import Scored, costs, score
from ensemble_operator.planner.throughput import room


@dataclass
class Budget:
    """How long to search: a number of evaluated matrices, and whatever `stop` says."""

    evaluations: int
    stop: Callable[[], bool] = lambda: False
    spent: int = field(default=0, init=False)

    def left(self) -> bool:
        """Whether there is any left."""
        return self.spent < self.evaluations and not self.stop()

    def spend(self) -> None:
        """One matrix more was evaluated."""
        self.spent += 1


def bounded_greedy(instance: Instance, start: Matrix, budget: Budget, *, neighbours: int = 512) -> Scored:
    """Paper A's second step: the best of the one-cell changes, again and again, until none raises the rate.

    Args:
        instance: The problem.
        start: A matrix that fits.
        budget: How long to go on.
        neighbours: Most changes to evaluate in one round, the most promising first.

    Returns:
        The last matrix, never worse than `start`.
    """
    best = score(instance, start)
    while budget.left():
        found = best
        changes = sorted(one_cell_changes(instance, best.matrix), key=lambda m: -promise(instance, best, m))
        for matrix in changes[:neighbours]:
            if promise(instance, best, matrix) <= found.score or not budget.left():
                break
            budget.spend()
            outcome = score(instance, matrix)
            found = outcome if outcome.beats(found) else found
        if found is best:
            return best
        best = found
    return best


def one_cell_changes(instance: Instance, matrix: Matrix) -> Iterator[Matrix]:
    """Every matrix that differs in one cell, fits, and still serves every member."""
    free = instance.capacity[instance.type_of] - instance.bytes_used(matrix)
    alone = (matrix != 0).sum(axis=0) == 1
    for d, m in np.ndindex(*matrix.shape):
        t, now = instance.type_of[d], matrix[d, m]
        space = free[d] + (instance.memory[t, m, now - 1] if now else 0)
        for option in range(1 if now and alone[m] else 0, int(instance.options[t, m]) + 1):
            if option != now and (option == 0 or instance.memory[t, m, option - 1] <= space):
                changed = matrix.copy()
                changed[d, m] = option
                yield changed


def promise(instance: Instance, at: Scored, matrix: Matrix) -> float:
    """An upper bound on a matrix's score from the prices of another one: weak duality."""
    price = at.steady.device_price
    rows, columns = np.nonzero(matrix)
    cost = instance.seconds[instance.type_of[rows], columns, matrix[rows, columns] - 1] * price[rows]
    member = np.full(matrix.shape[1], np.inf)
    np.minimum.at(member, columns, cost)
    time = float((room(instance, matrix) * price).sum()) if instance.interferes else float(price.sum())
    least = float(member.sum()) / time if time > 0 else 0.0
    return (-math.log(least) if least > 0 else math.inf) - costs(instance, matrix)


def local_search(instance: Instance, start: Scored, budget: Budget, random: np.random.Generator) -> Scored:
    """Descend by first improvement until no move helps."""
    at = start
    while budget.left():
        better = _improve(instance, at, budget, random)
        if better is None:
            return at
        at = better
    return at


def _improve(instance: Instance, at: Scored, budget: Budget, random: np.random.Generator) -> Scored | None:
    work = np.zeros(instance.shape)
    work[at.steady.cell_device, at.steady.cell_member] = at.steady.work
    seen: set[bytes] = set()
    moves = list(_moves(instance, at.matrix))
    for i in random.permutation(len(moves)):
        if not budget.left():
            return None
        matrix, touched = _seat(instance, at.matrix, moves[i])
        if promise(instance, at, matrix) <= at.score:
            continue
        # Where memory is tight most changes do not fit; finding that out takes as long as an evaluation.
        budget.spend()
        if not _fit(instance, matrix, touched, work, moves[i]):
            continue
        key = _key(instance, matrix)
        if key in seen or promise(instance, at, matrix) <= at.score:
            continue
        seen.add(key)
        outcome = score(instance, matrix)
        if outcome.beats(at):
            return outcome
    return None


@dataclass(frozen=True, slots=True)
class Move:
    """A change of who sits where: cells to drop and members to seat, as (device, member)."""

    drop: tuple[tuple[int, int], ...]
    seat: tuple[tuple[int, int], ...]


def _moves(instance: Instance, matrix: Matrix) -> Iterator[Move]:
    able = instance.options[instance.type_of] > 0
    cells = [(int(d), int(m)) for d, m in zip(*matrix.nonzero(), strict=True)]
    several = (matrix != 0).sum(axis=0) > 1
    empty = [(int(d), int(m)) for d, m in zip(*((matrix == 0) & able).nonzero(), strict=True)]
    for d, m in empty:
        yield Move((), ((d, m),))
        for e, n in cells:
            if n == m:
                yield Move(((e, m),), ((d, m),))
            elif e == d and several[n]:
                yield Move(((d, n),), ((d, m),))
            elif n > m or e == d or (matrix[e, m] == 0 and able[e, m] and matrix[d, n] == 0):
                continue
    for d, m in cells:
        if several[m]:
            yield Move(((d, m),), ())
        for e, n in cells:
            if e > d and n != m and not matrix[d, n] and not matrix[e, m] and able[d, n] and able[e, m]:
                yield Move(((d, m), (e, n)), ((d, n), (e, m)))


def _seat(instance: Instance, matrix: Matrix, move: Move) -> tuple[Matrix, list[int]]:
    """The matrix after a move, and the devices touched: at their fastest batch sizes, which may not fit."""
    changed = matrix.copy()
    for d, m in move.drop:
        changed[d, m] = 0
    for d, m in move.seat:
        changed[d, m] = 1
    touched = sorted({d for d, _ in move.drop + move.seat})
    fastest = instance.options[instance.type_of[touched]]
    changed[touched] = np.where(changed[touched] != 0, fastest, 0)
    return changed, touched


def _fit(instance: Instance, seated: Matrix, touched: list[int], work: Floats, move: Move) -> bool:
    """Choose the batch sizes of the touched devices anew, in place; False where it does not fit."""
    share = work.copy()
    for d, m in move.seat:
        given = sum(work[e, m] for e, n in move.drop if n == m)
        share[d, m] = given if given > 0 else 1.0 / np.count_nonzero(seated[:, m])
    return all(refit(instance, seated, d, np.maximum(share[d], 1e-3)) for d in touched)


def _key(instance: Instance, matrix: Matrix) -> bytes:
    """The same for matrices that differ only in which of several like devices on a node does what."""
    order = np.lexsort((*matrix.T, instance.node_of, instance.type_of))
    return matrix[order].tobytes()


def shake(instance: Instance, at: Scored, random: np.random.Generator, strength: int) -> Scored:
    """A matrix some random moves away."""
    matrix = at.matrix
    for _ in range(strength):
        moves = list(_moves(instance, matrix))
        for i in random.permutation(len(moves))[:50]:
            work = (matrix != 0) / np.count_nonzero(matrix, axis=0)
            changed, touched = _seat(instance, matrix, moves[i])
            if _fit(instance, changed, touched, work, moves[i]):
                matrix = changed
                break
    return score(instance, matrix)
