"""Sums that shards make of their members: folded together they are the rule over all members."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.config import Combination, Predictions, Rule, RuntimeConfig
from ensemble_runtime.pipeline.folds import EVERYTHING, Peak, Prefolded, WeightedSum
from ensemble_runtime.pipeline.rules import make_fold, partial_fold
from ensemble_runtime.span import SUMS, folded_by_shards, laid_out


@st.composite
def cases(draw: st.DrawFn) -> tuple[Combination, list[float], list[bool], list[bool], int]:
    rule = draw(st.sampled_from(sorted(SUMS)))
    kinds = [kind for kind in Predictions if not (rule is Rule.HARD_VOTE and kind is Predictions.VALUES)]
    combination = Combination(rule=rule, predictions=draw(st.sampled_from(kinds)))
    weights = draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 7.5]), min_size=3, max_size=6))
    flags = st.lists(st.booleans(), min_size=len(weights), max_size=len(weights))
    return combination, weights, draw(flags), draw(flags.filter(any)), draw(st.integers(0, 2**31))


@given(cases())
def test_a_sum_made_elsewhere_changes_no_answer(
    case: tuple[Combination, list[float], list[bool], list[bool], int],
) -> None:
    """Any members may be elsewhere, any of all may have failed, and the one that brings the sum may come last."""
    combination, weights, elsewhere, arrived, seed = case
    random = np.random.default_rng(seed)
    outputs = random.dirichlet(np.ones(3), size=(len(weights), 4))
    whole = make_fold(combination, weights, "f8")
    assert isinstance(whole, WeightedSum | Peak)
    places = [place for place, there in enumerate(arrived) if there]
    far = [place for place in places if elsewhere[place]]

    expected = np.full((4, 3), np.nan)
    for order, place in enumerate(places):
        whole.fold(expected, EVERYTHING, order == 0, outputs[place], place)
    whole.finish(expected, EVERYTHING, np.array(arrived))

    contributions = outputs.copy()
    if far:
        shares = whole.shares if isinstance(whole, WeightedSum) else [1.0] * len(weights)
        part = partial_fold(combination, [shares[place] for place in far])
        for order, place in enumerate(far):
            part.fold(contributions[far[0]], EVERYTHING, order == 0, outputs[place], order)
        contributions[far[1:]] = part.nothing
    prefolded = Prefolded(whole, frozenset(far))
    answer = np.full((4, 3), np.nan)
    for order, place in enumerate(random.permutation(places).tolist()):
        prefolded.fold(answer, EVERYTHING, order == 0, contributions[place], place)
    prefolded.finish(answer, EVERYTHING, np.array(arrived))
    np.testing.assert_allclose(answer, expected, rtol=1e-9, atol=1e-12)


def head(**changes: object) -> RuntimeConfig:
    """a is here, b and c are far away, d is here and there, e is a shadow far away."""
    model = {"uri": "file:///none", "format": "ONNX"}
    cells = [("s", "a", 4), ("far", "b", 4), ("far", "c", 8), ("s", "d", 4), ("far", "d", 4), ("far", "e", 4)]
    return RuntimeConfig.model_validate(
        {
            "name": "spread",
            "members": [{"name": name, "model": model, "shadow": name == "e"} for name in "abcde"],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
            "devices": [{"name": "s", "kind": "Simulated", "type": "sim", "memoryBytes": 1}],
            "remotes": [{"name": "far", "url": "http://far:8000", "tokenFile": "/token", "connections": 3}],
            "cells": [{"device": d, "member": m, "batchSize": b} for d, m, b in cells],
            **changes,
        }
    )


def test_members_that_are_nowhere_else_are_folded_there() -> None:
    assert folded_by_shards(head()) == {1, 2}
    assert folded_by_shards(laid_out(head())) == {1, 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"combination": {"rule": "Median"}},
        {"combination": {"rule": "TrimmedMean"}},
        {"combination": {"rule": "HardVote", "predictions": "Values"}},
        {"outputs": [{"name": "y", "datatype": "FP16", "shape": [3]}]},
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]},
    ],
)
def test_where_each_members_rows_are_needed_nothing_is_folded(changes: dict[str, object]) -> None:
    assert folded_by_shards(head(**changes)) == frozenset()


def test_each_connection_has_a_cell_for_each_member_of_one_size() -> None:
    cells = [(cell.device, cell.member, cell.batch_size) for cell in laid_out(head()).cells]
    lane = [("far", member, 8) for member in "bcde"]
    assert cells == [("s", "a", 4), ("s", "d", 4), *lane, *lane, *lane]


def test_a_runtime_without_shards_is_laid_out_as_it_is() -> None:
    cells = [{"device": "s", "member": name, "batchSize": 4} for name in "abcde"]
    config = head(remotes=[], cells=cells)
    assert laid_out(config) is config
