"""The disagreement signals: their bounds, their extremes, and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.config import Predictions
from ensemble_runtime.pipeline.disagreement import SIGNALS, disagreement


@st.composite
def ensembles(draw: st.DrawFn):
    members, rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(2, 7))
    logits = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(
        size=(members, rows, classes), scale=draw(st.sampled_from([0.01, 1, 30]))
    )
    weights = draw(st.lists(st.sampled_from([0, 0.5, 1, 4]), min_size=members, max_size=members).filter(any))
    return logits, weights


@settings(max_examples=150, deadline=None)
@given(ensembles())
def test_bounds_and_definitions(case):
    logits, weights = case
    probabilities = scipy.special.softmax(logits, axis=-1)
    variance, predictive, information, margin = disagreement(probabilities.astype("<f4"), weights).T
    mean = np.average(probabilities, axis=0, weights=weights)
    np.testing.assert_allclose(predictive, scipy.stats.entropy(mean, axis=-1), rtol=1e-4, atol=1e-6)
    expected = np.average([scipy.stats.entropy(p, axis=-1) for p in probabilities], axis=0, weights=weights)
    np.testing.assert_allclose(information, predictive - expected, rtol=1e-3, atol=2e-6)
    spread = np.average((probabilities - mean) ** 2, axis=0, weights=weights).mean(axis=-1)
    np.testing.assert_allclose(variance, spread, rtol=1e-3, atol=1e-7)
    assert ((information >= 0) & (information <= predictive + 1e-6)).all()
    assert (predictive <= np.log(logits.shape[-1]) + 1e-6).all()
    assert ((margin >= 0) & (margin <= 1 + 1e-6)).all()
    assert (variance <= 0.25).all()


@settings(max_examples=50, deadline=None)
@given(ensembles(), st.integers(1, 6))
def test_members_that_agree_disagree_about_nothing(case, copies):
    logits, _ = case
    signals = disagreement(np.repeat(logits[:1], copies, axis=0), [1.0] * copies, Predictions.LOGITS)
    entropy = scipy.stats.entropy(scipy.special.softmax(logits[0], axis=-1), axis=-1)
    np.testing.assert_allclose(signals[:, 0], 0, atol=1e-12)
    np.testing.assert_allclose(signals[:, 1], entropy, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(signals[:, 2], 0, atol=1e-7)
    np.testing.assert_allclose(signals[:, 3], 1, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(ensembles(), st.integers(0, 2**32 - 1))
def test_the_order_of_members_does_not_matter(case, seed):
    logits, weights = case
    order = np.random.default_rng(seed).permutation(len(weights))
    shuffled = disagreement(logits[order], np.array(weights)[order].tolist(), Predictions.LOGITS)
    np.testing.assert_allclose(disagreement(logits, weights, Predictions.LOGITS), shuffled, rtol=1e-5, atol=1e-7)


def test_two_members_sure_of_different_classes():
    signals = dict(zip(SIGNALS, disagreement(np.eye(2)[:, None], [1, 1])[0], strict=True))
    assert signals["variance"] == pytest.approx(0.25)
    assert signals["predictive_entropy"] == pytest.approx(np.log(2))
    assert signals["mutual_information"] == pytest.approx(np.log(2))
    assert signals["vote_margin"] == pytest.approx(0)


def test_weights_move_the_votes():
    assert disagreement(np.eye(2)[:, None], [3, 1])[0, 3] == pytest.approx(0.5)
    assert disagreement(np.eye(2)[:, None], [3, 0])[0] == pytest.approx([0, 0, 0, 1], abs=1e-7)


def test_plain_values_have_a_variance_and_no_entropy():
    signals = disagreement(np.array([[1.0, 5.0], [3.0, 5.0]]), [1, 1], Predictions.VALUES)
    assert signals.dtype == np.float32
    assert signals[:, 0].tolist() == [1, 0]
    assert np.isnan(signals[:, 1:]).all()


def test_positions_before_the_classes_are_averaged():
    sure, torn = np.array([[1.0, 0], [1, 0]]), np.eye(2)
    both = np.stack([sure, torn], axis=1)[:, None]  # (members, 1 row, 2 positions, 2 classes)
    expected = (disagreement(sure[:, None], [1, 1]) + disagreement(torn[:, None], [1, 1])) / 2
    np.testing.assert_allclose(disagreement(both, [1, 1]), expected, rtol=1e-6)
