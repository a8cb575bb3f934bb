"""The rules between fields on a real API server: each refuses with its field and its words, and so do the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from beds.client import ApiError, Manifest
from beds.controlplane import ControlPlane
from ensemble_operator.api.crd import crds
from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.api.validations import VALIDATIONS
from ensemble_runtime.errors import ManifestError

pytestmark = pytest.mark.timeout(300)  # the first test starts the control plane
SHA = "0123456789abcdef" * 4
TOP = {"uri": "https://models.example/top.onnx", "format": "ONNX"}
STACKING = {"rule": "Stacking", "model": TOP}


def ensemble(**spec: Any) -> Manifest:
    """Members a, b and the shadow c."""
    members = [
        {"name": m, "model": {"uri": f"https://models.example/{m}.onnx", "format": "ONNX"}, "shadow": m == "c"}
        for m in "abc"
    ]
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": "rules", "namespace": "default"},
        "spec": {
            "members": members,
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [64]},
                {"name": "z", "datatype": "FP32", "shape": [1]},
            ],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [10]}],
            **spec,
        },
    }


def members(**changes: Any) -> list[dict[str, Any]]:
    """The members, each with these changes."""
    found: list[dict[str, Any]] = [{**member, **changes} for member in ensemble()["spec"]["members"]]
    return found


def model(**changes: Any) -> list[dict[str, Any]]:
    """The members, each with these changes of its source."""
    return [{**m, "model": {**m["model"], **changes}} for m in ensemble()["spec"]["members"]]


def outputs(*shapes: list[int]) -> list[dict[str, Any]]:
    return [{"name": f"y{i}", "datatype": "FP32", "shape": shape} for i, shape in enumerate(shapes)]


# What the spec says, the field that the refusal names, and a part of its words.
CONTRADICTIONS: list[tuple[Mapping[str, Any], str, str]] = [
    ({"members": members(shadow=True)}, "spec.members", "every member is a shadow"),
    ({"members": members(weight=0), "combination": {"rule": "SoftVote"}}, "spec.members", "all weights are 0"),
    ({"serving": {"quorum": {"minMembers": 3, "deadlineMs": 5}}}, "spec.serving.quorum.minMembers", "at most as many"),
    (
        {"serving": {"quorum": {"minMembers": 2, "deadlineMs": 30_000}}},
        "spec.serving.quorum.deadlineMs",
        "less than timeoutMs",
    ),
    (
        {"serving": {"quorum": {"minMembers": 1, "deadlineMs": 5}}, "combination": STACKING},
        "spec.serving.quorum",
        "needs the values of every member",
    ),
    ({"members": members(deviceKinds=["Simulated"])}, "spec.members", "no kind in common"),
    ({"devices": {"kinds": ["CPU"]}, "members": members(deviceKinds=["GPU"])}, "spec.members", "no kind in common"),
    ({"devices": {"kinds": ["Simulated"]}}, "spec.devices.kinds", "exactly when `simulated` lists"),
    (
        {"devices": {"kinds": ["GPU"], "simulated": [{"type": "t", "memoryMib": 1}]}},
        "spec.devices.kinds",
        "exactly when `simulated` lists",
    ),
    ({"combination": {"rule": "Stacking"}}, "spec.combination.model", "rule Stacking needs it"),
    ({"combination": {"model": TOP}}, "spec.combination.model", "only rule Stacking takes a model"),
    (
        {"combination": {"rule": "Stacking", "model": {**TOP, "secretName": "s"}}},
        "spec.combination.model.sha256",
        "found again by its digest",
    ),
    ({"combination": STACKING, "outputs": outputs([10], [2])}, "spec.combination.rule", "gives one output"),
    ({"combination": STACKING, "outputs": outputs([10, -1])}, "spec.outputs", "one that is not variable"),
    ({"combination": {"rule": "Median"}, "outputs": outputs([10], [])}, "spec.outputs", "works along the classes"),
    ({"combination": {"rule": "HardVote"}, "outputs": outputs([3, 1])}, "spec.outputs", "works along the classes"),
    ({"combination": {"predictions": "Logits"}, "outputs": outputs([1])}, "spec.outputs", "works along the classes"),
    ({"objective": {"goal": "Latency"}}, "spec.objective.rate", "goal Latency needs it"),
    ({"objective": {"goal": "FewestDevices", "p99Ms": 5}}, "spec.objective.rate", "goal FewestDevices needs it"),
    ({"objective": {"goal": "Goodput"}}, "spec.objective.p99Ms", "goal Goodput needs it"),
    ({"objective": {"rate": 5}}, "spec.objective.rate", "makes no use of it"),
    ({"objective": {"goal": "Latency", "rate": 5, "p99Ms": 5}}, "spec.objective.p99Ms", "makes no use of it"),
    ({"outputs": [{"name": "y", "datatype": "FP32", "shape": [0]}]}, "spec.outputs[0].shape", "holds nothing"),
    ({"members": members(partition={"objective": "Memory"})}, "spec.members[0].partition.latencyMs", "Memory needs it"),
    (
        {
            "members": members(partition={"objective": "Latency"}),
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        },
        "spec.members",
        "whose inputs have variable dimensions",
    ),
    (
        {"members": [{**m, "partition": {"objective": "Latency"}} for m in model(format="TorchExport")]},
        "spec.members[0].partition",
        "only ONNX",
    ),
    ({"placement": {"tolerations": [{"value": "v"}]}}, "spec.placement.tolerations[0].key", "Equal needs it"),
    (
        {"placement": {"tolerations": [{"operator": "Exists", "value": "v"}]}},
        "spec.placement.tolerations[0].value",
        "takes no value",
    ),
]
# What only a cluster cannot have.
ONLY_HERE: list[tuple[Mapping[str, Any], str, str]] = [
    ({"members": model(uri="file://./a.onnx")}, "spec.members[0].model.uri", "relative to a manifest on a disk"),
    ({"members": model(uri="pvc://Claim")}, "spec.members[0].model.uri", "expected pvc://CLAIM/path"),
    (
        {"members": model(uri="pvc://claim/m", secretName="s")},
        "spec.members[0].model.secretName",
        "only files that are fetched",
    ),
]
FINE: list[Mapping[str, Any]] = [
    {},
    {"combination": {"rule": "Stacking", "model": {**TOP, "secretName": "s", "sha256": SHA}}},
    {"combination": {"rule": "TrimmedMean", "trim": 0}},
    {"combination": STACKING, "outputs": outputs([-1, 10])},
    {"combination": STACKING, "outputs": outputs([])},
    {"combination": {"rule": "SoftVote"}, "outputs": outputs([1], [], [-1])},
    {"combination": {"rule": "HardVote", "predictions": "Values"}, "outputs": outputs([1], [])},
    {"combination": {"rule": "GeometricMean", "predictions": "Logits"}, "outputs": outputs([-1])},
    {"objective": {"goal": "Latency", "rate": 5}},
    {"objective": {"goal": "FewestDevices", "rate": 5, "p99Ms": 5}},
    {"serving": {"quorum": {"minMembers": 2, "deadlineMs": 5}}},
    {"serving": {"quorum": {"minMembers": 2, "deadlineMs": 30_000}, "timeoutMs": 30_001}},
    {"devices": {"simulated": [{"type": "t", "memoryMib": 1}]}},
    {"members": model(uri="pvc://shared-models/folder/m.onnx")},
    {"members": model(uri="s3://bucket/m.onnx", secretName="store")},
    {"members": members(partition={"objective": "Memory", "latencyMs": 5})},
    {"placement": {"tolerations": [{"operator": "Exists"}, {"key": "k", "value": "v", "effect": "NoSchedule"}]}},
]


@pytest.mark.parametrize(("spec", "field", "words"), [*CONTRADICTIONS, *ONLY_HERE])
def test_a_contradiction_is_refused_with_its_field(
    control_plane: ControlPlane, spec: Mapping[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        control_plane.admin.create(ensemble(**spec), dryRun="All")
    assert refusal.value.code == 422
    assert f"{field}: " in refusal.value.message
    assert words in refusal.value.message


@pytest.mark.parametrize(("spec", "field", "words"), CONTRADICTIONS)
def test_the_models_refuse_it_too(spec: Mapping[str, Any], field: str, words: str) -> None:
    with pytest.raises(ManifestError):
        load_manifest(yaml.safe_dump(ensemble(**spec)), folder="/")


@pytest.mark.parametrize("spec", FINE)
def test_what_is_fine_passes_both(control_plane: ControlPlane, spec: Mapping[str, Any]) -> None:
    made = control_plane.admin.create(ensemble(**spec), dryRun="All")
    # What the API server has filled in is what the models would fill in.
    assert load_manifest(yaml.safe_dump(made), folder="/") == load_manifest(
        yaml.safe_dump(ensemble(**spec)), folder="/"
    )


def test_every_rule_is_in_the_crds() -> None:
    text = yaml.safe_dump(crds(), width=10_000)
    for rules in VALIDATIONS.values():
        for rule in rules:
            assert yaml.safe_dump(rule.message, width=10_000).strip().removesuffix("...").strip() in text


def test_what_clients_were_written_against_stays(control_plane: ControlPlane, namespace: str) -> None:
    admin = control_plane.admin
    made = ensemble()
    made["metadata"]["namespace"] = namespace
    path = admin.path(admin.create(made))
    inputs = made["spec"]["inputs"]
    for change in (
        {"inputs": inputs[:1]},
        {"inputs": inputs[::-1]},
        {"inputs": [{**inputs[0], "shape": [65]}, inputs[1]]},
        {"outputs": [{"name": "y", "datatype": "FP16", "shape": [10]}]},
        {"outputs": [{"name": "w", "datatype": "FP32", "shape": [10]}]},
    ):
        with pytest.raises(ApiError) as refusal:
            admin.merge(path, {"spec": change})
        assert f"spec.{next(iter(change))}: " in refusal.value.message
        assert "cannot change" in refusal.value.message
    longer = [{**tensor, "maxLength": 2048} for tensor in inputs]
    changed = admin.merge(path, {"spec": {"inputs": longer, "combination": {"rule": "Median"}, "replicas": 0}})
    assert changed["spec"]["inputs"][0]["maxLength"] == 2048


def test_a_profile_stays_a_profile_of_the_same(control_plane: ControlPlane, namespace: str) -> None:
    admin = control_plane.admin
    points = [{"batchSize": 8, "seconds": 0.01, "memoryMib": 900}]
    made = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"model": {"sha256": SHA}, "deviceType": "cpu-1", "points": points},
    }
    path = admin.path(admin.create(made))
    split = {"partition": {"objective": "Latency"}}
    for change in ({"model": {"sha256": "f" * 64}}, {"deviceType": "cpu-2"}, {"precision": "FP16"}, split):
        with pytest.raises(ApiError, match="cannot change"):
            admin.merge(path, {"spec": change})
    corrected = [{**points[0], "seconds": 0.02, "secondMemoryMib": 0}]
    assert admin.merge(path, {"spec": {"points": corrected}})["spec"]["points"] == corrected
