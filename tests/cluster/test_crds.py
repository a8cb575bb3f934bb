"""The CRDs on a real API server: what it takes, what it fills in, what it refuses and how it says so."""

from __future__ import annotations

import copy
import json
import subprocess
from typing import Any

import pytest

from beds.client import ApiError, Manifest
from beds.controlplane import ControlPlane

pytestmark = pytest.mark.timeout(300)  # the first test starts the control plane
PLURAL = "inferenceensembles"
SHA = "0123456789abcdef" * 4


def ensemble(namespace: str, name: str = "digits") -> Manifest:
    """The least that a manifest may say, twice over."""
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": [
                {"name": "a", "model": {"uri": "https://models.example/a.onnx", "format": "ONNX", "sha256": SHA}},
                {"name": "b", "model": {"uri": "https://models.example/b.onnx", "format": "ONNX"}},
            ],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [64]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [10]}],
        },
    }


def profile(namespace: str) -> Manifest:
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": "resnet-a100", "namespace": namespace},
        "spec": {
            "model": {"sha256": SHA},
            "deviceType": "NVIDIA-A100-SXM4-40GB",
            "points": [{"batchSize": 8, "seconds": 0.01, "memoryMib": 900}],
        },
    }


def changed(manifest: Manifest, path: str, value: Any) -> Manifest:
    """A copy with one place changed; the path is dotted, list positions are numbers, None takes the place away."""
    result = copy.deepcopy(manifest)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = result
    for step in way:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is None:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return result


# Where the manifest is changed, to what, and the field that the refusal must name.
BAD_ENSEMBLES: list[tuple[str, Any, str]] = [
    ("metadata.name", "Digits", "metadata.name"),
    ("metadata.name", "9digits", "metadata.name"),
    ("metadata.name", "d" * 64, "metadata.name"),
    ("spec", None, "spec"),
    ("spec.members", None, "spec.members"),
    ("spec.members", [], "spec.members"),
    ("spec.members", "a", "spec.members"),
    ("spec.members.1.name", "a", "spec.members[1]"),
    ("spec.members.0.name", "A member", "spec.members[0].name"),
    ("spec.members.0.name", None, "spec.members[0].name"),
    ("spec.members.0.model", None, "spec.members[0].model"),
    ("spec.members.0.model.uri", "models/a.onnx", "spec.members[0].model.uri"),
    ("spec.members.0.model.format", "Keras", "spec.members[0].model.format"),
    ("spec.members.0.model.sha256", "abc", "spec.members[0].model.sha256"),
    ("spec.members.0.model.allowPickle", "yes", "spec.members[0].model.allowPickle"),
    ("spec.members.0.model.secretName", "My Secret", "spec.members[0].model.secretName"),
    ("spec.members.0.weight", -1, "spec.members[0].weight"),
    ("spec.members.0.precision", "INT4", "spec.members[0].precision"),
    ("spec.members.0.batchSizes", [], "spec.members[0].batchSizes"),
    ("spec.members.0.batchSizes", [8, 8], "spec.members[0].batchSizes[1]"),
    ("spec.members.0.batchSizes", [0], "spec.members[0].batchSizes[0]"),
    ("spec.members.0.deviceKinds", ["TPU"], "spec.members[0].deviceKinds[0]"),
    ("spec.members.0.partition", {"objective": "Speed"}, "spec.members[0].partition.objective"),
    ("spec.members.0.partition", {"objective": "Memory", "latencyMs": 0}, "spec.members[0].partition.latencyMs"),
    ("spec.inputs", None, "spec.inputs"),
    ("spec.inputs.0.datatype", "float", "spec.inputs[0].datatype"),
    ("spec.inputs.0.shape", [64.5], "spec.inputs[0].shape[0]"),
    ("spec.inputs.0.shape", [-2], "spec.inputs[0].shape[0]"),
    ("spec.inputs.1", {"name": "x", "datatype": "FP32", "shape": []}, "spec.inputs[1]"),
    ("spec.outputs", [], "spec.outputs"),
    ("spec.outputs.0.maxLength", 0, "spec.outputs[0].maxLength"),
    ("spec.combination.rule", "Average", "spec.combination.rule"),
    ("spec.combination.trim", 0.5, "spec.combination.trim"),
    ("spec.combination.trim", 1, "spec.combination.trim"),
    ("spec.combination.model", {"uri": "https://models.example/c.onnx"}, "spec.combination.model.format"),
    ("spec.objective.goal", "Cheap", "spec.objective.goal"),
    ("spec.objective.rate", 0, "spec.objective.rate"),
    ("spec.serving.timeoutMs", 0, "spec.serving.timeoutMs"),
    ("spec.serving.quorum", {"minMembers": 1}, "spec.serving.quorum.deadlineMs"),
    ("spec.devices.kinds", [], "spec.devices.kinds"),
    ("spec.devices.max", 0, "spec.devices.max"),
    ("spec.devices.cpuCoresPerDevice", 0, "spec.devices.cpuCoresPerDevice"),
    ("spec.devices.simulated", [{"type": "gpu"}], "spec.devices.simulated[0].memoryMib"),
    ("spec.replicas", -1, "spec.replicas"),
    ("spec.replicas", 1.5, "spec.replicas"),
    ("spec.mode", "DryRun", "spec.mode"),
    ("spec.suspend", "true", "spec.suspend"),
    ("spec.priority", 10**10, "spec.priority"),
    ("spec.preemption", "Always", "spec.preemption"),
    ("spec.rollout.strategy", "BlueGreen", "spec.rollout.strategy"),
    ("spec.rollout.progressTimeoutSeconds", 0, "spec.rollout.progressTimeoutSeconds"),
    ("spec.placement.nodeSelector", {"pool": "not a label!"}, "spec.placement.nodeSelector.pool"),
    ("spec.placement.tolerations", [{"effect": "Never"}], "spec.placement.tolerations[0].effect"),
    ("spec.placement.devicePinning", "Always", "spec.placement.devicePinning"),
]
BAD_PROFILES: list[tuple[str, Any, str]] = [
    ("spec.model.sha256", "abc", "spec.model.sha256"),
    ("spec.deviceType", "two words", "spec.deviceType"),
    ("spec.points", [], "spec.points"),
    ("spec.points.0.seconds", 0, "spec.points[0].seconds"),
    ("spec.points.1", {"batchSize": 8, "seconds": 0.02, "memoryMib": 900}, "spec.points[1]"),
    ("spec.interference", [{"sha256": SHA, "factor": 0.01}], "spec.interference[0].factor"),
    ("spec.interference", [{"sha256": SHA, "factor": 0}], "spec.interference[0].factor"),
]


def identifier(case: Any) -> str:
    return json.dumps(case)[:30]


@pytest.mark.parametrize(("path", "value", "field"), BAD_ENSEMBLES, ids=identifier)
def test_bad_ensembles_are_refused_with_the_field(
    control_plane: ControlPlane, path: str, value: Any, field: str
) -> None:
    manifest = changed(ensemble("default"), path, value)
    with pytest.raises(ApiError) as refusal:
        control_plane.admin.create(manifest, dryRun="All")
    assert refusal.value.code in (400, 422)
    assert field in refusal.value.message


@pytest.mark.parametrize(("path", "value", "field"), BAD_PROFILES, ids=identifier)
def test_bad_profiles_are_refused_with_the_field(
    control_plane: ControlPlane, path: str, value: Any, field: str
) -> None:
    with pytest.raises(ApiError) as refusal:
        control_plane.admin.create(changed(profile("default"), path, value), dryRun="All")
    assert refusal.value.code in (400, 422)
    assert field in refusal.value.message


def test_the_api_server_finds_no_fault_with_the_crds(control_plane: ControlPlane) -> None:
    for name in ("inferenceensembles.ensembles.dev", "modelprofiles.ensembles.dev"):
        crd = control_plane.admin.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert conditions["NamesAccepted"] == "True"
        assert conditions.get("NonStructuralSchema", "False") == "False"


def test_defaults_are_filled_in(control_plane: ControlPlane, namespace: str) -> None:
    spec = control_plane.admin.create(ensemble(namespace))["spec"]
    assert spec["replicas"] == 1
    assert spec["mode"] == "Serve"
    assert spec["suspend"] is False
    assert spec["combination"]["rule"] == "Mean"
    assert spec["rollout"]["strategy"] == "RollingUpdate"
    assert spec["serving"]["timeoutMs"] == 30000
    assert [member["weight"] for member in spec["members"]] == [1, 1]
    assert spec["members"][0]["deviceKinds"] == ["GPU", "CPU", "Simulated"]
    assert "max" not in spec["devices"]


def test_unknown_fields_are_pruned_and_refused_by_strict_validation(
    control_plane: ControlPlane, namespace: str
) -> None:
    manifest = changed(ensemble(namespace), "spec.members.0.wieght", 2)
    with pytest.raises(ApiError, match=r'unknown field "spec.members\[0\].wieght"'):
        control_plane.admin.create(manifest, fieldValidation="Strict")
    assert "wieght" not in control_plane.admin.create(manifest)["spec"]["members"][0]


def test_kubectl_says_what_is_wrong(control_plane: ControlPlane, namespace: str) -> None:
    typo = changed(ensemble(namespace), "spec.replcias", 2)
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        control_plane.kubectl("apply", "-f", "-", manifests=[typo], namespace=namespace)
    assert 'unknown field "replcias"' in refusal.value.stderr


def test_status_is_a_subresource(control_plane: ControlPlane, namespace: str) -> None:
    admin = control_plane.admin
    created = admin.create(changed(ensemble(namespace), "status", {"members": "2/2"}))
    assert "status" not in created
    path = admin.path(created)
    patched = admin.merge(f"{path}/status", {"status": {"members": "2/2"}, "spec": {"replicas": 7}})
    assert patched["status"]["members"] == "2/2"
    assert patched["spec"]["replicas"] == 1
    assert patched["metadata"]["generation"] == created["metadata"]["generation"]


def test_columns_of_kubectl_get(control_plane: ControlPlane, namespace: str) -> None:
    admin = control_plane.admin
    path = admin.path(admin.create(ensemble(namespace)))
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AllMembersReady",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {
        "conditions": [ready],
        "members": "2/2",
        "devices": 3,
        "nodes": 1,
        "rate": 1234.5,
        "plan": "0a1b2c3d",
        "bottleneck": "member a",
        "reason": "NoProfile",
    }
    admin.merge(f"{path}/status", {"status": status})
    narrow = control_plane.kubectl("get", "ie", namespace=namespace).splitlines()
    assert narrow[0].split() == ["NAME", "READY", "MEMBERS", "DEVICES", "NODES", "RATE", "AGE"]
    assert narrow[1].split()[:6] == ["digits", "True", "2/2", "3", "1", "1234.5"]
    wide = control_plane.kubectl("get", "ie", "-o", "wide", namespace=namespace).splitlines()
    assert wide[0].split() == [*narrow[0].split(), "PLAN", "BOTTLENECK", "REASON"]
    assert "0a1b2c3d" in wide[1]
    assert "NoProfile" in wide[1]


def test_scale_subresource(control_plane: ControlPlane, namespace: str) -> None:
    admin = control_plane.admin
    path = admin.path(admin.create(ensemble(namespace)))
    control_plane.kubectl("scale", "ie", "digits", "--replicas=4", namespace=namespace)
    assert admin.get(path)["spec"]["replicas"] == 4
    selector = "ensembles.dev/ensemble=digits"
    admin.merge(f"{path}/status", {"status": {"replicas": 3, "selector": selector}})
    scale = admin.get(f"{path}/scale")
    assert scale["spec"]["replicas"] == 4
    assert scale["status"] == {"replicas": 3, "selector": selector}


def test_explain_describes_the_fields(control_plane: ControlPlane) -> None:
    said = control_plane.kubectl("explain", "ie.spec.members.weight")
    assert "Share in weighted rules and votes" in said


def test_both_kinds_are_in_one_category(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.admin.create(ensemble(namespace))
    control_plane.admin.create(profile(namespace))
    listed = control_plane.kubectl("get", "ensembles", "-o", "name", namespace=namespace).split()
    assert sorted(listed) == ["inferenceensemble.ensembles.dev/digits", "modelprofile.ensembles.dev/resnet-a100"]
