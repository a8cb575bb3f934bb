"""RuntimeConfig refuses what no runtime could serve, and says which field is at fault."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ensemble_runtime.config import RuntimeConfig, Serving

STACKING = {"rule": "Stacking", "model": {"uri": "file:///top.onnx", "format": "ONNX"}}


def document() -> dict[str, Any]:
    model = {"uri": "file:///m.onnx", "format": "ONNX"}
    return {
        "name": "pair",
        "members": [{"name": "a", "model": model}, {"name": "b", "model": model}],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
        "devices": [{"name": "cpu0", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1024, "cores": [0]}],
        "cells": [{"device": "cpu0", "member": m, "batchSize": 8} for m in "ab"],
    }


def test_a_sound_configuration_survives_its_own_json() -> None:
    config = RuntimeConfig.model_validate(document())
    assert RuntimeConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [m.update(shadow=True) for m in d["members"]], "every one is a shadow"),
        (
            lambda d: d.update(serving={"quorum": {"minMembers": 3, "deadlineMs": 1}}),
            "serving.quorum.minMembers: got 3",
        ),
        (
            lambda d: d.update(serving={"quorum": {"minMembers": 1, "deadlineMs": 30_000}}),
            "serving.quorum.deadlineMs: got 30000, expected less than serving.timeoutMs, 30000",
        ),
        (
            lambda d: d.update(combination=STACKING, serving={"quorum": {"minMembers": 1, "deadlineMs": 5}}),
            "serving.quorum: rule Stacking needs the values of every member",
        ),
        (lambda d: d["cells"].pop(), "no cell serves b"),
        (lambda d: d["cells"][0].update(device="gpu9"), r"cells\[0\].device: no device is named 'gpu9'"),
        (lambda d: d["cells"][0].update(member="c"), r"cells\[0\].member: no member is named 'c'"),
        (lambda d: d["members"][1].update(name="a"), "members: names must be unique"),
        (lambda d: d.update(combination={"rule": "Stacking"}), "required by rule Stacking"),
        (
            lambda d: d.update(combination=STACKING, outputs=d["outputs"] + d["inputs"]),
            "combination.rule: rule Stacking gives one output, expected no more, got 2",
        ),
        (
            lambda d: d.update(combination=STACKING) or d["outputs"][0].update(shape=[3, -1]),
            r"outputs\[0\].shape: rule Stacking .* not variable, got \[3, -1\]",
        ),
        (lambda d: d["inputs"][0].update(shape=[0]), "a dimension of 0 holds nothing"),
        (lambda d: d.update(sevring={}), "Extra inputs are not permitted"),
    ],
)
def test_a_contradiction_names_its_field(change: Any, message: str) -> None:
    broken = document()
    change(broken)
    with pytest.raises(ValidationError, match=message):
        RuntimeConfig.model_validate(broken)


def combining(shape: list[int], **combination: Any) -> RuntimeConfig:
    outputs = [{"name": "p", "datatype": "FP32", "shape": [2]}, {"name": "y", "datatype": "FP32", "shape": shape}]
    return RuntimeConfig.model_validate(document() | {"outputs": outputs, "combination": combination})


@pytest.mark.parametrize("rule", ["HardVote", "Median", "TrimmedMean", "GeometricMean", "Maximum"])
@pytest.mark.parametrize("shape", [[], [1], [4, 1]], ids=str)
def test_rules_along_classes_refuse_an_output_without_classes(rule: str, shape: list[int]) -> None:
    with pytest.raises(ValidationError, match=r"outputs\[1\].shape: .* 2 or more, got .*predictions: Values"):
        combining(shape, rule=rule)
    combining(shape, rule=rule, predictions="Values")
    combining([4, -1], rule=rule)


def test_a_mean_needs_no_classes_but_logits_do() -> None:
    combining([], rule="Mean")
    with pytest.raises(ValidationError, match="rule Mean on Logits works along the classes"):
        combining([], rule="Mean", predictions="Logits")


@pytest.mark.parametrize("timeout", [15_000, 30_000, 3_600_000])
def test_what_waits_behind_a_member_that_hangs_twice_has_a_third_of_its_time_left(timeout: float) -> None:
    assert Serving(timeout_ms=timeout).patience == pytest.approx(timeout / 3000)


def test_a_member_that_is_held_up_for_a_while_is_not_taken_for_hung_however_short_the_time_of_a_request() -> None:
    assert Serving(timeout_ms=200).patience == 5


def test_what_a_manifest_says_of_a_members_time_holds() -> None:
    assert Serving(timeout_ms=1000, member_timeout_ms=60_000).patience == 60
    assert Serving(member_timeout_ms=50).patience == 0.05
