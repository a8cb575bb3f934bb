"""What a manifest gives, and what a wrong one says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.manifest import load_manifest, load_profiles
from ensemble_operator.api.objective import Goal
from ensemble_runtime.config import DeviceKind, Hosting, Rule
from ensemble_runtime.errors import ManifestError

Spec = dict[str, Any]

PROFILE = """
apiVersion: ensembles.dev/v1alpha1
kind: ModelProfile
metadata: {name: mlp-on-a100}
spec:
  model: {sha256: %s}
  deviceType: NVIDIA-A100-SXM4-40GB
  points:
  - {batchSize: 1, seconds: 0.002, memoryMib: 100}
  - {batchSize: 8, seconds: 0.004, memoryMib: 120}
""" % ("a" * 64)


def load(text: str) -> InferenceEnsemble:
    return load_manifest(text, folder="/home/me/project", source="m.yaml").ensemble


def faults_of(document: object) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load(yaml.safe_dump(document, sort_keys=False))
    assert caught.value.exit_code == 65
    return str(caught.value).splitlines()


def test_defaults_are_filled_in(good: dict[str, Any]) -> None:
    spec = load(yaml.safe_dump(good)).spec
    assert spec.members[0].batch_sizes == (1, 2, 4, 8, 16, 32, 64, 128)
    assert spec.members[1].weight == 2
    assert spec.combination.rule is Rule.MEAN
    assert spec.objective.goal is Goal.THROUGHPUT
    assert spec.serving.hosting is Hosting.PER_CELL
    assert spec.devices.effective_kinds == (DeviceKind.GPU, DeviceKind.CPU)


def test_relative_files_stand_beside_the_manifest(good: dict[str, Any]) -> None:
    members = load(yaml.safe_dump(good)).spec.members
    assert members[0].model.uri == "file:///home/me/project/mlp.pt2"
    assert members[1].model.uri == "https://host/cnn.onnx"
    assert members[2].model.uri == "file:///models/gru.onnx"


def test_relative_files_may_lie_above_the_manifest(good: dict[str, Any]) -> None:
    good["spec"]["members"][0]["model"]["uri"] = "file://../shared/mlp.pt2"
    good["spec"]["combination"] = {"rule": "Stacking", "model": {"uri": "file://./top.onnx", "format": "ONNX"}}
    spec = load(yaml.safe_dump(good)).spec
    assert spec.members[0].model.uri == "file:///home/me/shared/mlp.pt2"
    assert spec.combination.model is not None
    assert spec.combination.model.uri == "file:///home/me/project/top.onnx"


def test_json_is_a_manifest_too(good: dict[str, Any]) -> None:
    assert load(json.dumps(good)) == load(yaml.safe_dump(good))


def test_what_the_api_server_adds_is_ignored(good: dict[str, Any]) -> None:
    plain = load(yaml.safe_dump(good))
    good["metadata"] |= {"uid": "6f1c", "generation": 3, "creationTimestamp": "2024-01-01T00:00:00Z"}
    good["status"] = {"observedGeneration": 3, "members": "2/2", "fieldOfTomorrow": True}
    assert load(yaml.safe_dump(good)).spec == plain.spec


def test_profiles_stand_beside_the_ensemble(good: dict[str, Any]) -> None:
    manifest = load_manifest(yaml.safe_dump(good) + "---" + PROFILE, folder="/", source="m.yaml")
    (profile,) = manifest.profiles
    assert profile.spec.device_type == "NVIDIA-A100-SXM4-40GB"
    assert [point.batch_size for point in profile.spec.points] == [1, 8]
    assert load_profiles(PROFILE) == (profile,)


def test_an_empty_field_is_an_absent_one(good: dict[str, Any]) -> None:
    good["spec"]["combination"] = None
    assert load(yaml.safe_dump(good)).spec.combination.rule is Rule.MEAN


def test_anchors_and_merge_keys_are_written_out(good: dict[str, Any]) -> None:
    text = yaml.safe_dump(good) + "\n".join(
        [
            "---",
            "apiVersion: ensembles.dev/v1alpha1",
            "kind: ModelProfile",
            "metadata: {name: p}",
            "spec:",
            f"  model: {{sha256: {'b' * 64}}}",
            "  deviceType: cpu-1",
            "  points:",
            "  - &one {batchSize: 1, seconds: 1e-3, memoryMib: 10}",
            "  - {<<: *one, batchSize: 2}",
        ]
    )
    (profile,) = load_manifest(text, folder="/", source="m.yaml").profiles
    assert [(p.batch_size, p.seconds) for p in profile.spec.points] == [(1, 0.001), (2, 0.001)]


def edit(path: str, value: object) -> Callable[[Spec], None]:
    """An edit of the spec: sets the value at a dotted path."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]

    def apply(spec: Spec) -> None:
        target: Any = spec
        for step in steps:
            target = target.setdefault(step, {}) if isinstance(target, dict) else target[step]
        target[last] = value

    return apply


STACKING = {"rule": "Stacking", "model": {"uri": "file:///top.onnx", "format": "ONNX"}}
BAD: dict[str, tuple[Callable[[Spec], object], str]] = {
    "unknown field": (edit("combinations", {}), "spec.combinations: unknown field; did you mean `combination`?"),
    "unknown field in a member": (
        edit("members.0.wieght", 1),
        "spec.members[0].wieght: unknown field; did you mean `weight`?",
    ),
    "python spelling": (
        edit("serving.timeout_ms", 5),
        "spec.serving.timeout_ms: unknown field; did you mean `timeoutMs`?",
    ),
    "no members": (edit("members", []), "spec.members: got a list of 0, expected at least 1 of them"),
    "members not a list": (edit("members", {"a": 1}), "spec.members: got a mapping, expected a list"),
    "member name": (
        edit("members.1.name", "My_CNN"),
        "spec.members[1].name: got 'My_CNN', expected lower-case letters",
    ),
    "member name twice": (edit("members.1.name", "mlp"), "spec.members[1].name: got 'mlp', which entry 0 has too"),
    "no model": (edit("members.2.model", None), "spec.members[2].model: missing"),
    "format": (
        edit("members.2.model.format", "Onnx"),
        "spec.members[2].model.format: got 'Onnx', expected one of TorchExport, TorchScript, ONNX",
    ),
    "no uri": (edit("members.0.model.uri", None), "spec.members[0].model.uri: missing"),
    "uri": (
        edit("members.0.model.uri", "mlp.onnx"),
        "spec.members[0].model.uri: got 'mlp.onnx', expected a URI such as",
    ),
    "file uri with a host": (
        edit("members.0.model.uri", "file://mlp.onnx"),
        "spec.members[0].model.uri: got 'file://mlp.onnx', expected file:///mlp.onnx",
    ),
    "sha256": (
        edit("members.0.model.sha256", "abc"),
        "spec.members[0].model.sha256: got 'abc', expected 64 lower-case hexadecimal digits",
    ),
    "weight below zero": (edit("members.0.weight", -1), "spec.members[0].weight: got -1, expected at least 0"),
    "weight not finite": (
        edit("members.0.weight", float("inf")),
        "spec.members[0].weight: got .inf, expected a finite number",
    ),
    "weight as text": (edit("members.0.weight", "1"), "spec.members[0].weight: got '1', expected a number"),
    "precision": (
        edit("members.0.precision", "fp16"),
        "spec.members[0].precision: got 'fp16', expected one of FP32, FP16, BF16; did you mean FP16?",
    ),
    "batch size zero": (edit("members.0.batchSizes", [0]), "spec.members[0].batchSizes[0]: got 0, expected at least 1"),
    "batch size twice": (
        edit("members.0.batchSizes", [8, 8]),
        "spec.members[0].batchSizes[1]: got '8', which entry 0 has too",
    ),
    "device kinds empty": (edit("members.0.deviceKinds", []), "spec.members[0].deviceKinds: got a list of 0"),
    "device kind": (
        edit("members.0.deviceKinds", ["TPU"]),
        "spec.members[0].deviceKinds[0]: got 'TPU', expected one of GPU, CPU, Simulated",
    ),
    "device kind not offered": (
        edit("members.0.deviceKinds", ["Simulated"]),
        "spec.members[0].deviceKinds: none of these may serve; `spec.devices` offers GPU, CPU",
    ),
    "shadow as text": (edit("members.0.shadow", "yes"), "spec.members[0].shadow: got 'yes', expected true or false"),
    "datatype": (edit("inputs.0.datatype", "float32"), "spec.inputs[0].datatype: got 'float32', expected one of BOOL"),
    "dimension zero": (edit("inputs.0.shape", [0]), "spec.inputs[0]: a dimension of 0 holds nothing"),
    "dimension as text": (edit("inputs.0.shape", ["n"]), "spec.inputs[0].shape[0]: got 'n', expected a whole number"),
    "too many dimensions": (
        edit("outputs.0.shape", [1] * 9),
        "spec.outputs[0].shape: got a list of 9, expected at most 8",
    ),
    "no outputs": (edit("outputs", None), "spec.outputs: missing"),
    "rule": (edit("combination.rule", "Average"), "spec.combination.rule: got 'Average', expected one of Mean"),
    "stacking without model": (
        edit("combination.rule", "Stacking"),
        "spec.combination: `model` is required by rule Stacking",
    ),
    "votes without classes": (
        lambda spec: (edit("combination.rule", "HardVote")(spec), edit("outputs.0.shape", [4, 1])(spec)),
        "spec.outputs[0].shape: rule HardVote on Probabilities works along the classes; expected a last dimension of 2",
    ),
    "stacking with two outputs": (
        lambda spec: (
            edit("combination", STACKING)(spec),
            spec["outputs"].append({"name": "y", "datatype": "FP32", "shape": [2]}),
        ),
        "spec.combination.rule: rule Stacking gives one output, expected no more, got 2",
    ),
    "stacking along a variable dimension": (
        lambda spec: (edit("combination", STACKING)(spec), edit("outputs.0.shape", [-1])(spec)),
        "spec.outputs[0].shape: rule Stacking puts the members' values side by side along the last dimension",
    ),
    "trim": (edit("combination.trim", 0.5), "spec.combination.trim: got 0.5, expected less than 0.5"),
    "quorum too high": (
        edit("serving.quorum", {"minMembers": 3, "deadlineMs": 5}),
        "spec.serving.quorum.minMembers: got 3, expected at most 2",
    ),
    "quorum as late as the timeout": (
        edit("serving", {"timeoutMs": 500, "quorum": {"minMembers": 1, "deadlineMs": 500}}),
        "spec.serving.quorum.deadlineMs: got 500, expected less than serving.timeoutMs, 500",
    ),
    "quorum with stacking": (
        lambda spec: (
            edit("combination", STACKING)(spec),
            edit("serving.quorum", {"minMembers": 1, "deadlineMs": 5})(spec),
        ),
        "spec.serving.quorum: rule Stacking needs the values of every member",
    ),
    "quorum without deadline": (edit("serving.quorum", {"minMembers": 1}), "spec.serving.quorum.deadlineMs: missing"),
    "timeout": (edit("serving.timeoutMs", 0), "spec.serving.timeoutMs: got 0, expected more than 0"),
    "hosting": (
        edit("serving.hosting", "PerGPU"),
        "spec.serving.hosting: got 'PerGPU', expected one of PerCell, PerDevice",
    ),
    "goal": (
        edit("objective.goal", "Speed"),
        "spec.objective.goal: got 'Speed', expected one of Throughput, Latency, Goodput, FewestDevices",
    ),
    "latency without rate": (edit("objective.goal", "Latency"), "spec.objective.rate: missing; goal Latency needs it"),
    "goodput without p99": (edit("objective.goal", "Goodput"), "spec.objective.p99Ms: missing; goal Goodput needs it"),
    "throughput with a rate": (edit("objective.rate", 5), "spec.objective.rate: goal Throughput makes no use of it"),
    "simulated kind without devices": (
        edit("devices.kinds", ["Simulated"]),
        "spec.devices.kinds: Simulated belongs here exactly when",
    ),
    "simulated memory": (
        edit("devices.simulated", [{"type": "A100", "memoryMib": 0}]),
        "spec.devices.simulated[0].memoryMib: got 0, expected at least 1",
    ),
    "simulated type twice": (
        edit("devices.simulated", [{"type": "A", "memoryMib": 1}] * 2),
        "spec.devices.simulated[1].type: got 'A', which entry 0 has too",
    ),
    "cores": (
        edit("devices.cpuCoresPerDevice", 1.5),
        "spec.devices.cpuCoresPerDevice: got 1.5, expected a whole number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_spec_is_named_by_path(good: dict[str, Any], case: str) -> None:
    change, expected = BAD[case]
    change(good["spec"])
    (fault,) = faults_of(good)
    place, _, message = fault.partition(": ")
    assert place.startswith("m.yaml:")
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("apiVersion", "ensembles.dev/v1", "apiVersion: got 'ensembles.dev/v1', expected 'ensembles.dev/v1alpha1'"),
        ("kind", "Ensemble", "kind: got Ensemble, expected one of InferenceEnsemble, ModelProfile"),
        ("metadata", None, "metadata: missing"),
        ("metadata", {"name": "Digits"}, "metadata.name: got 'Digits', expected lower-case letters"),
        (
            "metadata",
            {"name": "d", "labels": {"version": 1.0}},
            "metadata.labels.version: got 1.0, expected text (in quotes",
        ),
        ("spec", None, "spec: missing"),
        ("spec", [], "spec: got a list of 0, expected a mapping"),
    ],
)
def test_a_bad_envelope_is_named_by_path(good: dict[str, Any], key: str, value: object, expected: str) -> None:
    good[key] = value
    (fault,) = faults_of(good)
    assert fault.partition(": ")[2].startswith(expected)


def test_all_faults_come_at_once_in_the_order_of_the_text(good: dict[str, Any]) -> None:
    edit("members.0.model.format", "Onnx")(good["spec"])
    edit("members.1.weight", -1)(good["spec"])
    edit("serving.timeoutMs", 0)(good["spec"])
    paths = [fault.split(": ")[1] for fault in faults_of(good)]
    assert paths == ["spec.members[0].model.format", "spec.members[1].weight", "spec.serving.timeoutMs"]


def test_contradictions_between_fields_come_at_once_too(good: dict[str, Any]) -> None:
    edit("members.0.deviceKinds", ["Simulated"])(good["spec"])
    edit("serving.quorum", {"minMembers": 9, "deadlineMs": 5})(good["spec"])
    assert len(faults_of(good)) == 2


def test_members_that_are_all_shadows_combine_to_nothing(good: dict[str, Any]) -> None:
    for member in good["spec"]["members"]:
        member["shadow"] = True
    assert "every member is a shadow" in faults_of(good)[0]


def test_weights_that_are_all_zero_cannot_be_normalised(good: dict[str, Any]) -> None:
    good["spec"]["combination"] = {"rule": "WeightedMean"}
    for member in good["spec"]["members"][:2]:
        member["weight"] = 0
    assert "all weights are 0" in faults_of(good)[0]


def test_a_fault_bears_the_line_of_the_text(good: dict[str, Any]) -> None:
    text = yaml.safe_dump(good, sort_keys=False).replace("format: TorchExport", "format: Torch")
    line = 1 + next(i for i, line in enumerate(text.splitlines()) if "format: Torch" in line)
    with pytest.raises(ManifestError, match=rf"^m\.yaml:{line}: spec\.members\[0\]\.model\.format: "):
        load(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "got 0 documents of kind InferenceEnsemble, expected exactly one"),
        ("a: [1,\n b: 2", "m.yaml:3: not YAML: "),
        ("a: b: c", "m.yaml:1: not YAML: "),
        ("\x07", "control characters are not allowed"),
        ("- 1\n- 2", "kind: got nothing"),
        ("kind: ModelProfile\nkind: ModelProfile", "m.yaml:2: kind: written twice; keep one"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "the tag tag:yaml.org,2002:python/object/apply:os.system has no meaning here",
        ),
        ("[" * 100, "nested deeper than 32 levels"),
        ("a: &a [*a]", "aliases that never end"),
        ("a: *b", "undefined alias"),
        ("? [a]\n: b", "a key must be plain text"),
        ("# " + "x" * (1 << 20), "larger than 1 MiB"),
        ("---\na: 1\n" * 1025, "more than 1024 documents"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "more than 200000 values",
        ),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert expected in str(caught.value)


def test_two_ensembles_in_one_file_are_refused(good: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="got 2 documents of kind InferenceEnsemble"):
        load(yaml.safe_dump_all([good, good]))


def test_a_bad_profile_is_named_by_path() -> None:
    text = PROFILE.replace("batchSize: 8", "batchSize: 1").replace("seconds: 0.002", "seconds: 0")
    with pytest.raises(ManifestError) as caught:
        load_profiles(text, source="p.yaml")
    first, second = str(caught.value).splitlines()[0], PROFILE.replace("batchSize: 8", "batchSize: 1")
    assert first == "p.yaml:9: spec.points[0].seconds: got 0, expected more than 0"
    with pytest.raises(ManifestError, match=r"spec\.points\[1\]\.batchSize: got '1', which entry 0 has too"):
        load_profiles(second)


def test_a_file_of_profiles_holds_nothing_else(good: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="kind ModelProfile and no other"):
        load_profiles(yaml.safe_dump(good))


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    with pytest.raises(ManifestError):
        load(text)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_paths = [
    "members", "members.0", "members.0.model", "members.0.name", "members.1.batchSizes", "inputs", "outputs.0.shape",
    "combination", "objective", "serving", "serving.quorum", "devices", "devices.simulated", "surprise",
]  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(_paths), _values)
def test_any_value_anywhere_is_accepted_or_refused_in_words(path: str, value: object) -> None:
    document: dict[str, Any] = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": "x"},
        "spec": {
            "members": [{"name": n, "model": {"uri": "https://h/m", "format": "ONNX"}} for n in ("a", "b")],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
        },
    }
    edit(path, value)(document["spec"])
    try:
        load(yaml.safe_dump(document, allow_unicode=True))
    except ManifestError as error:
        assert all(line.startswith("m.yaml:") for line in str(error).splitlines())
