"""Every rule against a reference that sees all values at once, whatever order and batches they arrive in."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.config import Combination, ModelFormat, ModelSource, Predictions, Rule
from ensemble_runtime.pipeline.rules import EPSILON, make_fold, member_shares, stack_features

RULES = [rule for rule in Rule if rule is not Rule.STACKING]
ORDER_STATISTICS = (Rule.MEDIAN, Rule.TRIMMED_MEAN)
SIMPLEX_LEAVING = (Rule.MEDIAN, Rule.TRIMMED_MEAN, Rule.GEOMETRIC_MEAN, Rule.MAXIMUM)


def reference_row(combination: Combination, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One row's answer in float64 from the values of the members that arrived, (m, *shape)."""
    values = values.astype(np.float64)
    weights = weights if weights.any() else np.ones(len(weights))
    if combination.predictions is Predictions.LOGITS:
        values = scipy.special.softmax(values, axis=-1)
    plain = combination.predictions is Predictions.VALUES
    match combination.rule:
        case Rule.MEAN:
            answer = values.mean(axis=0)
        case Rule.WEIGHTED_MEAN | Rule.SOFT_VOTE:
            answer = np.average(values, axis=0, weights=weights)
        case Rule.HARD_VOTE if plain:
            return reference_plurality(weights, values)
        case Rule.HARD_VOTE:
            one_hot = np.eye(values.shape[-1])[values.argmax(axis=-1)]
            return np.average(one_hot, axis=0, weights=weights)
        case Rule.MEDIAN:
            answer = np.median(values, axis=0)
        case Rule.TRIMMED_MEAN:
            answer = scipy.stats.trim_mean(values, combination.trim, axis=0)
        case Rule.GEOMETRIC_MEAN:
            heard = np.maximum(values, 0 if plain else EPSILON)[weights > 0]
            answer = np.prod(
                heard ** (weights[weights > 0] / weights.sum()).reshape(-1, *(1,) * (heard.ndim - 1)), axis=0
            )
        case Rule.MAXIMUM:
            answer = values.max(axis=0)
    if plain or combination.rule not in SIMPLEX_LEAVING:
        return answer
    total = answer.sum(axis=-1, keepdims=True)
    return np.where(total > 0, answer / np.where(total > 0, total, 1), 1 / answer.shape[-1])


def reference_plurality(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    answer = np.empty(values.shape[1:])
    for place in np.ndindex(answer.shape):
        votes: dict[float, list[float]] = {}
        for weight, value in zip(weights, values[(slice(None), *place)], strict=True):
            votes.setdefault(round(float(value)), []).append(float(weight))
        answer[place] = min(votes, key=lambda label: (-sum(votes[label]), label))
    return answer


@st.composite
def traffic(draw: st.DrawFn):
    """Members' values for some rows, which of them arrive, and in which batches and order."""
    predictions = draw(st.sampled_from(Predictions))
    shapes = [(2,), (5,), (3, 4)] + ([(), (1,)] if predictions is Predictions.VALUES else [])
    shape = draw(st.sampled_from(shapes))
    members, rows = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.normal(size=(members, rows, *shape), scale=3)
    if predictions is Predictions.PROBABILITIES:
        values = scipy.special.softmax(values, axis=-1)
        if draw(st.booleans()):  # exact zeros and ones, and ties between classes
            values = np.eye(shape[-1])[values.argmax(axis=-1)]
    elif predictions is Predictions.VALUES:
        values = np.abs(values)  # a geometric mean takes no negatives
    # Multiples of a power of two, so that ties in weighted votes are ties in any arithmetic.
    weights = np.array(draw(st.lists(st.sampled_from([0, 0.25, 1, 1, 3]), min_size=members, max_size=members)))
    arrived = random.random((members, rows)) < draw(st.sampled_from([0.4, 0.8, 1.0]))
    arrived[random.integers(members, size=rows), np.arange(rows)] = True
    batches = []
    for member in range(members):
        mine = np.flatnonzero(arrived[member])
        if draw(st.booleans()):
            mine = random.permutation(mine)
        cuts = sorted(draw(st.lists(st.integers(0, len(mine)), max_size=3)))
        batches += [(member, part) for part in np.split(mine, cuts) if len(part)]
    batches = [batches[i] for i in random.permutation(len(batches))]
    return predictions, values, weights, arrived, batches


def as_rows(indices: np.ndarray) -> slice | np.ndarray:
    """A slice where the rows are consecutive, as the combiner passes them."""
    contiguous = (np.diff(indices) == 1).all()
    return slice(int(indices[0]), int(indices[-1]) + 1) if contiguous else indices


def combine(combination, values, weights, arrived, batches, dtype):
    """Drive a fold as the combination process does, over an area with the leftovers of earlier requests."""
    rows, *shape = values.shape[1:]
    fold = make_fold(combination, weights.tolist(), dtype)
    acc = np.full((rows, *shape), np.nan if np.dtype(dtype).kind == "f" else 77, dtype=dtype)
    stack = np.where(
        arrived.reshape(*arrived.shape, *(1,) * len(shape)), values, np.nan if acc.dtype.kind == "f" else 99
    )
    stack = stack.astype(dtype)
    seen = np.zeros(rows, dtype=bool)
    for member, indices in batches:
        fresh = ~seen[indices]
        first = bool(fresh[0]) if (fresh == fresh[0]).all() else fresh
        fold.fold(acc, as_rows(indices), first, stack[member, indices], member)
        seen[indices] = True
    for half in np.array_split(np.arange(rows), 2):
        if len(half):
            everyone = arrived[:, half].all()
            fold.finish(acc, as_rows(half), None if everyone else arrived[:, half], stack[:, half])
    return acc


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=120, deadline=None)
@given(case=traffic(), dtype=st.sampled_from(["<f4", "<f8"]))
def test_any_order_batches_and_subset_give_the_reference(rule, case, dtype):
    predictions, values, weights, arrived, batches = case
    combination = Combination(rule=rule, predictions=predictions)
    values = values.astype(dtype)
    answer = combine(combination, values, weights, arrived, batches, dtype)
    assert answer.dtype == np.dtype(dtype)
    for row in range(values.shape[1]):
        here = arrived[:, row]
        expected = reference_row(combination, weights[here], values[here, row])
        np.testing.assert_allclose(answer[row], expected, rtol=2e-5 if dtype == "<f4" else 1e-9, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(case=traffic(), dtype=st.sampled_from(["<f2", "<i4", "|u1"]))
def test_small_and_integer_types_lose_nothing_on_the_way(rule, case, dtype):
    """Only the final answer is rounded to the output's type."""
    predictions, values, weights, arrived, batches = case
    combination = Combination(rule=rule, predictions=predictions)
    values = values.astype(dtype)
    answer = combine(combination, values, weights, arrived, batches, dtype)
    whole = np.dtype(dtype).kind != "f"
    for row in range(values.shape[1]):
        here = arrived[:, row]
        expected = reference_row(combination, weights[here], values[here, row])
        tolerance = {"rtol": 0, "atol": 0.5 + 1e-9} if whole else {"rtol": 1e-3, "atol": 1e-6}
        np.testing.assert_allclose(answer[row], expected, **tolerance)


@pytest.mark.parametrize("rule", [r for r in RULES if r is not Rule.HARD_VOTE])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), members=st.integers(1, 5))
def test_a_combination_of_distributions_is_a_distribution(rule, seed, members):
    values = np.random.default_rng(seed).normal(size=(members, 7, 6), scale=20).astype("<f4")
    combination = Combination(rule=rule, predictions=Predictions.LOGITS)
    everyone = np.ones((members, 7), dtype=bool)
    answer = combine(
        combination, values, np.ones(members), everyone, [(m, np.arange(7)) for m in range(members)], "<f4"
    )
    np.testing.assert_allclose(answer.sum(axis=-1), 1, rtol=1e-5)
    assert (answer >= 0).all()


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_logits_are_as_good_as_their_probabilities(rule, seed):
    logits = np.random.default_rng(seed).normal(size=(4, 5, 3)).astype("<f8")
    everyone, weights = np.ones((4, 5), dtype=bool), np.array([1, 2, 0.5, 1])
    batches = [(m, np.arange(5)) for m in range(4)]
    answers = [
        combine(Combination(rule=rule, predictions=p), values, weights, everyone, batches, "<f8")
        for p, values in (
            (Predictions.LOGITS, logits),
            (Predictions.PROBABILITIES, scipy.special.softmax(logits, axis=-1)),
        )
    ]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_huge_logits_overflow_nothing(rule):
    values = np.array([[[1e30, -1e30, 0]], [[3e38, 0, -1e37]]], dtype="<f4")
    everyone = np.ones((2, 1), dtype=bool)
    with np.errstate(all="raise", under="ignore"):
        answer = combine(
            Combination(rule=rule, predictions=Predictions.LOGITS),
            values, np.ones(2), everyone, [(0, np.array([0])), (1, np.array([0]))], "<f4",
        )  # fmt: skip
    np.testing.assert_allclose(answer, [[1, 0, 0]], atol=1e-6)


def test_which_rules_stream():
    streaming = {rule: make_fold(Combination(rule=rule), [1, 1], "<f4").streaming for rule in RULES}
    assert streaming == {rule: rule not in ORDER_STATISTICS for rule in RULES}
    assert not make_fold(Combination(), [1, 1], "<f2").streaming
    labels = Combination(rule=Rule.HARD_VOTE, predictions=Predictions.VALUES)
    assert not make_fold(labels, [1, 1], "<f4").streaming


def test_class_labels_are_voted_on():
    labels = np.array([[3, 1], [7, 1], [7, 2], [3, 2]], dtype="<i8")
    weights = np.array([1, 1, 1, 1.5])
    everyone = np.ones((4, 2), dtype=bool)
    combination = Combination(rule=Rule.HARD_VOTE, predictions=Predictions.VALUES)
    answer = combine(combination, labels, weights, everyone, [], "<i8")
    assert answer.tolist() == [3, 2]


def test_votes_tied_go_to_the_lowest_label_in_any_order():
    combination = Combination(rule=Rule.HARD_VOTE, predictions=Predictions.VALUES)
    for labels in ([5, 9, 2], [2, 5, 9], [9, 2, 5]):
        answer = combine(combination, np.array(labels)[:, None], np.ones(3), np.ones((3, 1), dtype=bool), [], "<i4")
        assert answer.tolist() == [2]


def test_trimming_drops_the_outliers():
    values = np.array([0.4, 0.5, 0.6, -1000, 1000], dtype="<f4")[:, None]
    combination = Combination(rule=Rule.TRIMMED_MEAN, predictions=Predictions.VALUES, trim=0.2)
    answer = combine(combination, values, np.ones(5), np.ones((5, 1), dtype=bool), [], "<f4")
    np.testing.assert_allclose(answer, [0.5], rtol=1e-6)


def test_a_zero_vetoes_plain_values_but_not_probabilities():
    values = np.array([[[1.0, 0.0]], [[0.2, 0.8]], [[0.1, 0.9]]], dtype="<f4")
    everyone, batches = np.ones((3, 1), dtype=bool), [(m, np.array([0])) for m in range(3)]
    plain, probabilities = (
        combine(Combination(rule=Rule.GEOMETRIC_MEAN, predictions=p), values, np.ones(3), everyone, batches, "<f4")
        for p in (Predictions.VALUES, Predictions.PROBABILITIES)
    )
    assert plain[0, 1] == 0
    assert probabilities[0, 1] > 0


def test_classes_that_nobody_backs_come_out_uniform():
    values = np.eye(3, dtype="<f4")[:, None]
    answer = combine(Combination(rule=Rule.MEDIAN), values, np.ones(3), np.ones((3, 1), dtype=bool), [], "<f4")
    np.testing.assert_allclose(answer, [[1 / 3] * 3], rtol=1e-6)


def test_one_arrival_set_for_all_rows_may_be_given_once():
    values = np.arange(12, dtype="<f4").reshape(3, 4, 1)
    arrived = np.array([True, False, True])
    for rule in (Rule.WEIGHTED_MEAN, Rule.MEDIAN):
        fold = make_fold(Combination(rule=rule, predictions=Predictions.VALUES), [1, 1, 1], "<f4")
        acc = np.empty((4, 1), dtype="<f4")
        for first, member in ((True, 2), (False, 0)):
            fold.fold(acc, slice(0, 4), first, values[member], member)
        fold.finish(acc, slice(0, 4), arrived, values)
        np.testing.assert_allclose(acc, (values[0] + values[2]) / 2)


def test_finished_rows_alone_are_touched():
    fold = make_fold(Combination(), [1, 1], "<f4")
    acc = np.full((6, 2), 5, dtype="<f4")
    fold.fold(acc, slice(1, 3), True, np.ones((2, 2), dtype="<f4"), 0)
    fold.fold(acc, np.array([2, 1]), False, np.full((2, 2), 3, dtype="<f4"), 1)
    fold.finish(acc, slice(1, 3))
    assert acc.tolist() == [[5, 5], [2, 2], [2, 2], [5, 5], [5, 5], [5, 5]]


def test_the_members_values_are_left_as_they_were():
    for rule in RULES:
        values = np.random.default_rng(1).random((3, 4, 5)).astype("<f4")
        before = values.copy()
        fold = make_fold(Combination(rule=rule, predictions=Predictions.LOGITS), [1, 2, 3], "<f4")
        acc = np.empty((4, 5), dtype="<f4")
        for member in range(3):
            fold.fold(acc, slice(0, 4), member == 0, values[member], member)
        fold.finish(acc, slice(0, 4), None, values)
        assert (values == before).all(), rule


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=8))
def test_shares_are_positive_at_most_one_and_in_the_order_of_weights(weights):
    shares = member_shares(weights)
    assert (shares > 0).all()
    assert shares.max() == 1
    assert (np.diff(shares[np.argsort(weights)]) >= 0).all()


def test_stacking_puts_all_members_side_by_side():
    members = np.arange(2 * 3 * 2).reshape(2, 3, 2).astype("<f4")
    assert stack_features(members, Predictions.VALUES).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert stack_features(members[..., 0], Predictions.VALUES).tolist() == [[0, 6], [2, 8], [4, 10]]
    deep = stack_features(members[:, :, None, :], Predictions.LOGITS)
    assert deep.shape == (3, 1, 4)
    np.testing.assert_allclose(deep[0, 0], [0.26894143, 0.7310586] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match="stack_features"):
        model = ModelSource(uri="file:///m.onnx", format=ModelFormat.ONNX)
        make_fold(Combination(rule=Rule.STACKING, model=model), [1.0], "<f4")
