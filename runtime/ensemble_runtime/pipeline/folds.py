"""What a batch does to the output area while members arrive, and what makes an answer of it.

Streaming folds take every batch into the output area at once and keep no member's values; the others read all members'
values when a row is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = slice | NDArray[np.integer[Any]]
"""Distinct rows of the output area; a slice spares the copies that an index array costs."""
Map = Callable[[Array], Array]
EVERYTHING = slice(None)


class Fold(Protocol):
    """One output tensor's combination. Stateless: whatever accumulates, accumulates in the output area."""

    @property
    def streaming(self) -> bool:
        """Whether `fold` is enough; otherwise `finish` needs the values of all members, and `fold` does nothing."""

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Take in one batch of one member.

        Args:
            acc: The output area, (R, *shape), of the output's datatype.
            rows: The batch's k distinct rows of `acc`.
            first: Whether nothing has been folded into the rows yet; a bool where that is so for all or none of them.
            values: The member's predictions, (k, *shape).
            member: The member's position among the weights.
        """

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Turn rows of `acc` into the answer, in place.

        Args:
            acc: The output area, (R, *shape).
            rows: k distinct rows, each with at least one member that arrived.
            arrived: Which members did, (M,) for all rows alike or (M, k); None for every member.
            members: Unless streaming: all members' values, (M, k, *shape); read only where they arrived.
        """


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Adds `prepare(values)` times the member's share; `finish` divides by the shares that arrived, 1 for everybody."""

    shares: tuple[float, ...]
    prepare: Map | None
    settle: Map | None
    streaming: bool = True
    nothing: ClassVar[float] = 0.0
    """What changes no sum."""

    def merge(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array) -> None:
        """Add what was folded elsewhere."""
        _accumulate(np.add, acc, rows, first, values)

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Add a batch."""
        if self.prepare is not None:
            values = self.prepare(values)
        share = self.shares[member]
        if share != 1.0:
            values = values * share
        _accumulate(np.add, acc, rows, first, values)

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Divide by the shares that arrived."""
        if arrived is None:
            if self.settle is not None:
                acc[rows] = self.settle(acc[rows])
            return
        view = acc[rows]
        factor = np.asarray(1.0 / (np.asarray(self.shares) @ arrived), dtype=acc.dtype)
        view *= factor.reshape(factor.shape + (1,) * (view.ndim - 1)) if factor.ndim else factor
        _write_back(acc, rows, view, self.settle)


@dataclass(frozen=True, slots=True)
class Peak:
    """Keeps the largest of `prepare(values)`, elementwise."""

    prepare: Map | None
    settle: Map | None
    streaming: bool = True
    nothing: ClassVar[float] = -np.inf
    """What is never the largest."""

    def merge(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array) -> None:
        """Keep the larger of what was folded elsewhere."""
        _accumulate(np.maximum, acc, rows, first, values)

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Keep the larger."""
        _accumulate(np.maximum, acc, rows, first, values if self.prepare is None else self.prepare(values))

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Renormalise, where the rule asks for it."""
        if self.settle is not None:
            acc[rows] = self.settle(acc[rows])


@dataclass(frozen=True, slots=True)
class Prefolded:
    """Takes some members' values as `partial_fold` has left them; one of them brings the sum, the others nothing."""

    whole: WeightedSum | Peak
    places: frozenset[int]
    streaming: bool = True

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Take in a batch, folded or not."""
        if member in self.places:
            self.whole.merge(acc, rows, first, values)
        else:
            self.whole.fold(acc, rows, first, values, member)

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """As if each member had been folded here."""
        self.whole.finish(acc, rows, arrived)


@dataclass(frozen=True, slots=True)
class Uncombined:
    """Leaves the output area alone: a shard's members are combined by its head."""

    streaming: bool = True

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Nothing: the values stay in the member's own area."""

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Nothing."""


Combine = Callable[[Array, NDArray[np.intp]], Array]
"""(values of the members that arrived (m, k, *shape) in float, their positions (m,)) -> (k, *shape)."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Combines all members' values at once when the rows are complete."""

    members: int
    combine: Combine
    dtype: np.dtype[Any]
    streaming: bool = False

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Nothing: the values wait in the member's own area."""

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Combine, one set of arrived members after the other."""
        if members is None:
            raise ValueError("a rule that does not stream needs the values of all members")
        present = np.ones(self.members, dtype=np.bool_) if arrived is None else arrived
        answer = np.empty(members.shape[1:], dtype=self.dtype)
        for positions, part in _by_arrival(present):
            values = members[positions][:, part]
            if self.dtype not in (np.float32, np.float64):
                values = values.astype(np.float64)
            combined = self.combine(values, positions)
            answer[part] = combined if self.dtype.kind == "f" else np.rint(combined)
        acc[rows] = answer


def _accumulate(ufunc: np.ufunc, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array) -> None:
    if first is True:
        acc[rows] = values
    elif first is False:
        if isinstance(rows, slice):
            view = acc[rows]
            ufunc(view, values, out=view)
        else:
            acc[rows] = ufunc(acc[rows], values)
    else:
        held = acc[rows]
        fresh = np.asarray(first).reshape((-1,) + (1,) * (values.ndim - 1))
        # What lies in fresh rows is whatever the last request left there, so it must not even enter the sum.
        acc[rows] = ufunc(held, values, out=values.astype(acc.dtype), where=~fresh)


def _write_back(acc: Array, rows: Rows, view: Array, settle: Map | None) -> None:
    """Store what was computed on `acc[rows]`; a slice was changed in place already."""
    if settle is not None:
        acc[rows] = settle(view)
    elif not isinstance(rows, slice):
        acc[rows] = view


def _by_arrival(arrived: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Rows by the set of members that arrived: (positions of the members, selector of the rows)."""
    if arrived.ndim == 1:
        yield np.flatnonzero(arrived), EVERYTHING
        return
    patterns, group = np.unique(arrived, axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        yield np.flatnonzero(patterns[:, i]), np.flatnonzero(group.reshape(-1) == i)
