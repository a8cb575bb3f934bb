"""Which changes need new pods, and which do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_plans import DIGESTS, SETTINGS, UID, children, cpu, gpu, make_ensemble, make_plan

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.deployment import copy_objects
from ensemble_operator.manifests.names import MAX_NAME, config_map_name, cut, pod_name
from ensemble_operator.manifests.profiling import measured, profiling_objects
from ensemble_operator.manifests.revision import revision
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.profiles.profile import Point
from ensemble_runtime.report import pack

PLAN = make_plan([cpu("cpu0")], {("cpu0", m): 8 for m in DIGESTS})


def of(**spec: Any) -> str:
    return revision(make_ensemble(**spec).spec, DIGESTS)


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 3},
        {"priority": 5, "preemption": "LowerPriority"},
        {"mode": "PlanOnly"},
        {"suspend": True},
        {"devices": {"kinds": ["CPU"], "max": 2, "cpuCoresPerDevice": 4}},
        {"objective": {"goal": "Latency", "rate": 10}},
        {"rollout": {"strategy": "Recreate"}},
        {"placement": {"nodeSelector": {"pool": "a"}, "devicePinning": "Strict"}},
        {"serving": {"drainMs": 10_000}, "combination": {"rule": "Mean"}},
    ],
)
def test_what_no_pod_would_notice_is_no_new_revision(spec: dict[str, Any]) -> None:
    assert of(**spec) == of()


@pytest.mark.parametrize(
    "spec",
    [
        {"combination": {"rule": "Median"}},
        {"serving": {"drainMs": 1}},
        {"models": {"one": {"uri": "https://elsewhere.example/one.onnx"}}},
        {"outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}]},
        {"placement": {"priorityClassName": "high"}},
        {"placement": {"tolerations": [{"operator": "Exists"}]}},
    ],
)
def test_what_pods_are_made_of_is_a_new_revision(spec: dict[str, Any]) -> None:
    assert of(**spec) != of()


def test_another_file_at_the_same_address_is_a_new_revision() -> None:
    spec = make_ensemble().spec
    assert revision(spec, DIGESTS) != revision(spec, DIGESTS | {"two": "d" * 64})


def names(settings: PodSettings) -> list[str]:
    return [o["metadata"]["name"] for o in children(make_ensemble(), UID, [PLAN], DIGESTS, settings)]


def test_an_upgrade_of_the_operator_keeps_every_pod() -> None:
    upgraded = replace(SETTINGS, image_onnx="registry.example/runtime:next", pull_policy="Always")
    assert names(upgraded) == names(SETTINGS)


def test_another_copy_leaves_the_first_as_it_is() -> None:
    other = make_plan([cpu("cpu0", "node-b")], {("cpu0", m): 8 for m in DIGESTS})
    one = copy_objects(make_ensemble(), UID, 0, PLAN, DIGESTS, SETTINGS)
    both = children(make_ensemble(), UID, {0: PLAN, 1: other}, DIGESTS, SETTINGS)
    assert all(o in both for o in one)


def test_the_service_keeps_its_name_and_selects_a_revision() -> None:
    (service,) = (o for o in children(make_ensemble(), UID, [PLAN], DIGESTS, SETTINGS) if o["kind"] == "Service")
    assert service["metadata"]["name"] == "trio"
    assert service["spec"]["selector"] == {labels.ENSEMBLE: "trio", labels.ROLE: "head", labels.REVISION: of()}
    assert labels.selector(labels.heads("trio")) == "ensembles.dev/ensemble=trio,ensembles.dev/role=head"


def test_only_several_copies_have_a_budget() -> None:
    kinds = [o["kind"] for o in children(make_ensemble(), UID, [PLAN], DIGESTS, SETTINGS)]
    assert "PodDisruptionBudget" not in kinds


def test_torch_or_a_gpu_needs_the_full_image() -> None:
    def image(devices: list[Any], model_format: str) -> str:
        return SETTINGS.image(make_ensemble(models={"two": {"format": model_format}}), devices)

    assert image([cpu("cpu0")], "ONNX") == SETTINGS.image_onnx
    assert image([cpu("cpu0")], "TorchExport") == SETTINGS.image_full
    assert image([cpu("cpu0"), gpu("gpu0")], "ONNX") == SETTINGS.image_full


def test_long_names_end_in_a_hash_and_stay_apart() -> None:
    long = "a" * 62
    made = {pod_name(f"{long}{c}", "0123abcd", 999, 31) for c in "ab"} | {
        config_map_name(f"{long}{c}", "0" * 10) for c in "ab"
    }
    assert len(made) == 4
    assert all(len(name) <= MAX_NAME for name in made)
    assert cut("short", "-shards") == "short-shards"


def test_a_measurement_is_named_by_what_it_measures() -> None:
    ensemble, other = make_ensemble(), make_ensemble("other")

    def name(**changes: Any) -> str:
        member = (changes.pop("of", ensemble)).spec.members[0]
        return str(profiling_objects(ensemble, UID, member, cpu("cpu0"), SETTINGS, **changes)[0]["metadata"]["name"])

    assert name(digest="a" * 64) == name(digest="a" * 64, of=other)
    pair = name(digest="a" * 64, second=cpu("cpu1"))
    assert len({name(digest="a" * 64), name(), name(digest="a" * 64, node_kind="m5.large"), pair}) == 4


def test_a_termination_message_becomes_a_profile() -> None:
    record = {"digest": "a" * 64, "deviceType": "cpu-2", "precision": "FP32", "baselineBytes": 1}
    records = [record | {"batchSize": size, "seconds": size / 100, "memoryBytes": 10 * size} for size in (8, 1)]
    (profile,) = measured(pack(records))
    assert (profile.digest, profile.device_type, profile.precision) == ("a" * 64, "cpu-2", "FP32")
    assert profile.points == (Point(1, 0.01, 10), Point(8, 0.08, 80))


def test_a_pairs_profile_tells_what_is_on_either_device() -> None:
    record = {"digest": "a" * 64, "deviceType": "cpu-2:cpu-1", "precision": "FP32", "batchSize": 1, "seconds": 0.01}
    (profile,) = measured(pack([record | {"memoryBytes": 10, "secondBytes": 7}]))
    assert (profile.device_type, profile.points) == ("cpu-2:cpu-1", (Point(1, 0.01, 10, 7),))


@pytest.mark.parametrize("message", ["model https://h/m: the server answers 404", pack([{"digest": "a"}]), ""])
def test_a_reason_is_no_profile(message: str) -> None:
    with pytest.raises(ValueError, match="no p"):
        measured(message)
