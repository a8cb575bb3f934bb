"""How much the members disagree about each row: signals for abstaining, monitoring and active learning.

With weights w that sum to 1, member distributions p_m, their mean q = sum(w_m p_m), and H the entropy in nats:

- variance: sum(w_m (p_m - q)^2), averaged over the classes (Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable
  Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017)
- predictive entropy: H(q), the total uncertainty (ibid.; Gal, "Uncertainty in Deep Learning", 2016, section 3.3)
- mutual information: H(q) - sum(w_m H(p_m)), the part that is due to disagreement (Gal 2016, section 3.3)
- vote margin: the weighted share of votes for the most voted class less that of the second (the variation ratio, Gal
  2016, section 3.3, is 1 less the first of the two)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import Predictions
from ensemble_runtime.pipeline.rules import member_shares, softmax

SIGNALS = ("variance", "predictive_entropy", "mutual_information", "vote_margin")
"""The columns of `disagreement`, in order."""


def disagreement(
    members: NDArray[Any], weights: Sequence[float], predictions: Predictions = Predictions.PROBABILITIES
) -> NDArray[np.float32]:
    """The signals of each row, averaged over any axes between the first and the classes.

    Args:
        members: Values of the members that arrived for these rows, (M, k, *shape); classes are on the last axis.
        weights: Their weights, (M,).
        predictions: What the values are. Logits get a softmax per member. Plain values are no distributions: all but
            their variance is NaN.

    Returns:
        (k, 4), columns as in `SIGNALS`; entropies in nats.
    """
    count, rows = members.shape[:2]
    classes = members.shape[-1] if members.ndim > 2 else 1
    values = members.reshape(count, rows, -1, classes).astype(np.float64)
    if predictions is Predictions.LOGITS:
        values = softmax(values)
    shares = member_shares(weights)
    shares /= shares.sum()
    mean = np.tensordot(shares, values, axes=1)
    signals = np.full((4, rows), np.nan)
    signals[0] = np.tensordot(shares, (values - mean) ** 2, axes=1).mean(axis=(1, 2))
    if predictions is not Predictions.VALUES:
        total = _entropy(mean)
        signals[1] = total.mean(axis=1)
        # Jensen's inequality makes it at least 0; rounding alone can take it below.
        signals[2] = np.maximum(total - np.tensordot(shares, _entropy(values), axes=1), 0).mean(axis=1)
        signals[3] = _vote_margin(values, shares).mean(axis=1)
    return np.ascontiguousarray(signals.T, dtype=np.float32)


def _entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats, over the last axis; 0 log 0 is 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    entropy: NDArray[np.float64] = -(probabilities * logarithms).sum(axis=-1)
    return entropy


def _vote_margin(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of votes of the first class less the second's, (rows, positions); 1 where there is but one class."""
    classes = values.shape[-1]
    if classes == 1:
        return np.ones(values.shape[1:-1])
    ballots = values.argmax(axis=-1)[..., None] == np.arange(classes)
    ranked = np.sort(np.tensordot(shares, ballots, axes=1), axis=-1)
    margin: NDArray[np.float64] = ranked[..., -1] - ranked[..., -2]
    return margin
