"""The combination rules: how the members' predictions become one, batch by batch, as they arrive.

Streaming rules fold every batch into the output area at once and keep no member's values; the others read all
members' values when a row is complete. What each rule computes, with weights w over the members that arrived:

=============  =====================================================================================================
Mean           arithmetic mean; weights play no part
WeightedMean   sum(w p) / sum(w)
SoftVote       the same, of class probabilities
HardVote       weighted share of the votes for each class, a vote being the argmax of the last axis (the lowest class
               on a tie). On Values: for each element the rounded value with the largest weight behind it, the lowest
               on a tie, so that members which put out class labels can vote
Median         elementwise, without weights
TrimmedMean    elementwise mean without the floor(trim * members) lowest and highest; without weights
GeometricMean  exp(sum(w log p) / sum(w)). Probabilities count as at least `EPSILON`, so that no member has a veto.
               On Values: zero gives zero, and a negative value has no geometric mean (NaN)
Maximum        elementwise, without weights
Stacking       no rule of this module: a model reads `stack_features`
=============  =====================================================================================================

With Logits every member's values pass a softmax over the last axis first. With Probabilities and Logits the answer is
a distribution again: Median, TrimmedMean, GeometricMean and Maximum are renormalised over the last axis, to uniform
where no class has any mass left. A member of weight 0 speaks only in rows where no other member arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_runtime.config import Combination, Predictions, Rule
from ensemble_runtime.errors import ManifestError

EPSILON = 1e-7
"""The least probability that enters a geometric mean."""

SILENT_SHARE = 1e-25
"""Share of a member of weight 0: below the rounding of any other's, yet enough to divide by when it is alone."""

LOG_OF_ZERO = -1e6
"""Finite, so that a member of weight 0 cannot veto; so low that any real share of it still comes out as zero."""

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


def make_fold(combination: Combination, weights: Sequence[float], shape: tuple[int, ...], dtype: DTypeLike) -> Fold:
    """The fold of one output tensor.

    Args:
        combination: The rule, and what the predictions are; any rule but Stacking.
        weights: One for each member that is combined, finite, not negative.
        shape: The output's shape without the batch axis; -1 is variable.
        dtype: The output's datatype. Rules other than order statistics stream only in float32 and float64: in
            smaller types the sums would lose digits. Answers in integers are rounded.

    Raises:
        ManifestError: the rule needs a class axis and the output has none.
    """
    if combination.rule is Rule.STACKING:
        raise ValueError("Stacking is no fold; feed its model with stack_features")
    _check_class_axis(combination, shape)
    dtype = np.dtype(dtype)
    shares = member_shares(weights)
    order_statistic = _order_statistic(combination, shares)
    if order_statistic is not None:
        return Deferred(len(shares), order_statistic, dtype)
    streaming = _streaming(combination, shares)
    if dtype in (np.float32, np.float64):
        return streaming
    return Deferred(len(shares), _at_once(streaming, len(shares)), dtype)


def member_shares(weights: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Weights scaled to at most 1, with `SILENT_SHARE` for 0; all alike when every weight is 0."""
    array = np.asarray(weights, dtype=np.float64)
    largest = array.max()
    return np.maximum(array / largest, SILENT_SHARE) if largest > 0 else np.ones_like(array)


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, in the type of the logits."""
    exponentials: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def stack_features(members: Array, predictions: Predictions) -> Array:
    """What a stacking model reads: the members' values side by side along the last axis.

    Args:
        members: Every member's values, (M, k, *shape); a stacking model cannot do without one.
        predictions: Logits get a softmax per member, as in every rule.

    Returns:
        (k, *shape[:-1], M * shape[-1]); (k, M) when shape is ().
    """
    if members.ndim == 2:
        return np.ascontiguousarray(members.T)
    values = softmax(members) if predictions is Predictions.LOGITS else members
    return np.concatenate(tuple(values), axis=-1)


def partial_fold(combination: Combination, shares: Sequence[float]) -> WeightedSum | Peak:
    """The fold of some members of an ensemble, by their shares in all of it: without what is done once, at the end.

    Args:
        combination: A rule that is no order statistic, and what the predictions are.
        shares: Of the members, as `WeightedSum.shares` of the whole ensemble has them.
    """
    fold = _streaming(combination, np.ones(len(shares)))
    if isinstance(fold, WeightedSum):
        return replace(fold, shares=tuple(shares), settle=None)
    return replace(fold, settle=None)


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


def _check_class_axis(combination: Combination, shape: tuple[int, ...]) -> None:
    if combination.predictions is Predictions.VALUES:
        return
    unaffected = combination.rule in (Rule.MEAN, Rule.WEIGHTED_MEAN, Rule.SOFT_VOTE)
    if unaffected and combination.predictions is Predictions.PROBABILITIES:
        return
    if not shape or shape[-1] == 1:
        raise ManifestError(
            f"combination: rule {combination.rule} on {combination.predictions} works along the classes; expected an "
            f"output whose last dimension is 2 or more, got shape {list(shape)}. "
            "For plain numbers set predictions: Values"
        )


def _streaming(combination: Combination, shares: NDArray[np.float64]) -> WeightedSum | Peak:
    """The fold of a rule that is no order statistic."""
    plain = combination.predictions is Predictions.VALUES
    logits = combination.predictions is Predictions.LOGITS
    weighted = tuple((shares / shares.sum()).tolist())
    alike = (1.0 / len(shares),) * len(shares)
    probabilities = softmax if logits else None
    settle = None if plain else _renormalise
    match combination.rule:
        case Rule.MEAN:
            return WeightedSum(alike, probabilities, None)
        case Rule.WEIGHTED_MEAN | Rule.SOFT_VOTE:
            return WeightedSum(weighted, probabilities, None)
        case Rule.HARD_VOTE:
            return WeightedSum(weighted, _votes, None)
        case Rule.GEOMETRIC_MEAN:
            prepare = _plain_log if plain else _bounded_log_softmax if logits else _bounded_log
            return WeightedSum(weighted, prepare, np.exp if plain else softmax)
        case Rule.MAXIMUM:
            return Peak(probabilities, settle)
        case _:
            raise ValueError(f"rule {combination.rule} does not stream")


def _order_statistic(combination: Combination, shares: NDArray[np.float64]) -> Combine | None:
    """The function of a rule that needs all values at once; None for the other rules."""
    plain = combination.predictions is Predictions.VALUES
    logits = combination.predictions is Predictions.LOGITS

    def on_predictions(statistic: Map) -> Combine:
        def combine(values: Array, positions: NDArray[np.intp]) -> Array:
            centre = statistic(softmax(values) if logits else values)
            return centre if plain else _renormalise(centre)

        return combine

    def trimmed_mean(values: Array) -> Array:
        count = len(values)
        # 0.29 * 100 is 28.999..., and means 29.
        cut = int(combination.trim * count + 1e-9)
        kept: Array = np.sort(values, axis=0)[cut : count - cut].mean(axis=0)
        return kept

    def median(values: Array) -> Array:
        middle: Array = np.median(values, axis=0)
        return middle

    if combination.rule is Rule.MEDIAN:
        return on_predictions(median)
    if combination.rule is Rule.TRIMMED_MEAN:
        return on_predictions(trimmed_mean)
    if combination.rule is Rule.HARD_VOTE and plain:
        return lambda values, positions: _plurality(np.rint(values), shares[positions])
    return None


def _at_once(streaming: WeightedSum | Peak, members: int) -> Combine:
    """A streaming fold run over values that are all there, in their own accumulator."""

    def combine(values: Array, positions: NDArray[np.intp]) -> Array:
        acc = np.empty(values.shape[1:], dtype=values.dtype)
        for order, position in enumerate(positions.tolist()):
            streaming.fold(acc, EVERYTHING, order == 0, values[order], position)
        arrived = np.zeros(members, dtype=np.bool_)
        arrived[positions] = True
        streaming.finish(acc, EVERYTHING, arrived)
        return acc

    return combine


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


def _plurality(labels: Array, shares: NDArray[np.float64]) -> Array:
    """For each element the label (m, ...) with the largest share behind it; the lowest on a tie."""
    best: Array = labels[0]
    most = np.tensordot(shares, labels == best, axes=1)
    for label in labels[1:]:
        votes = np.tensordot(shares, labels == label, axes=1)
        better = (votes > most) | ((votes == most) & (label < best))
        best, most = np.where(better, label, best), np.where(better, votes, most)
    return best


def _votes(values: Array) -> Array:
    """One-hot of the argmax over the last axis."""
    chosen: Array = values.argmax(axis=-1)[..., None] == np.arange(values.shape[-1])
    votes: Array = chosen.astype(values.dtype)
    return votes


def _renormalise(values: Array) -> Array:
    total = values.sum(axis=-1, keepdims=True)
    uniform: Array = np.full_like(values, 1.0 / values.shape[-1])
    np.divide(values, total, out=uniform, where=total > 0)
    return uniform


def _plain_log(values: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms: Array = np.maximum(np.log(values), LOG_OF_ZERO)
        return logarithms


def _bounded_log(probabilities: Array) -> Array:
    logarithms: Array = np.log(np.maximum(probabilities, EPSILON))
    return logarithms


def _bounded_log_softmax(logits: Array) -> Array:
    return _bounded_log(softmax(logits))
