"""The combination rules: how the members' predictions become one, batch by batch, as they arrive.

What each rule computes, with weights w over the members that arrived:

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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_runtime.config import Combination, Predictions, Rule
from ensemble_runtime.pipeline.folds import EVERYTHING, Array, Combine, Deferred, Fold, Map, Peak, WeightedSum

EPSILON = 1e-7
"""The least probability that enters a geometric mean."""

SILENT_SHARE = 1e-25
"""Share of a member of weight 0: below the rounding of any other's, yet enough to divide by when it is alone."""

LOG_OF_ZERO = -1e6
"""Finite, so that a member of weight 0 cannot veto; so low that any real share of it still comes out as zero."""


def make_fold(combination: Combination, weights: Sequence[float], dtype: DTypeLike) -> Fold:
    """The fold of one output tensor.

    Args:
        combination: The rule, and what the predictions are; any rule but Stacking. What it
            cannot combine `RuntimeConfig` has refused.
        weights: One for each member that is combined, finite, not negative.
        dtype: The output's datatype. Rules other than order statistics stream only in float32 and float64: in
            smaller types the sums would lose digits. Answers in integers are rounded.
    """
    if combination.rule is Rule.STACKING:
        raise ValueError("Stacking is no fold; feed its model with stack_features")
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
