"""What a plan becomes in a cluster, to the letter: `UPDATE_GOLDEN=1 pytest` writes what is here now."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sample_plans import DIGESTS, SETTINGS, UID, children, cpu, gpu, make_ensemble, make_plan, make_plan_on, simulated

from ensemble_operator.manifests.profiling import profiling_objects
from ensemble_runtime.config import Partition

GOLDEN = Path(__file__).parent / "golden"
ALL_ON = {("gpu0", "one"): 8, ("gpu0", "two"): 32, ("gpu1", "three"): 1}

Objects = list[dict[str, Any]]


def anonymous_gpus() -> Objects:
    placement = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}, {"operator": "Exists"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "serviceAccountName": "models",
        "imagePullSecrets": ["registry"],
    }
    serving = {"drainMs": 2500, "startupTimeoutMs": 90_000}
    ensemble = make_ensemble(placement=placement, serving=serving)
    plan = make_plan([gpu("gpu0"), gpu("gpu1")], ALL_ON)
    return children(ensemble, UID, [plan], DIGESTS, SETTINGS)


def claimed_gpus() -> Objects:
    devices = [gpu("gpu-0", uuid="GPU-11"), gpu("gpu-1", uuid="GPU-22")]
    plan = make_plan(devices, {("gpu-0", "one"): 8, ("gpu-1", "two"): 8, ("gpu-1", "three"): 8})
    return children(make_ensemble(), UID, [plan], DIGESTS, SETTINGS)


def two_copies_on_cores() -> Objects:
    plans = [
        make_plan(
            [cpu("cpu0", node), cpu("cpu1", node)], {("cpu0", "one"): 8, ("cpu1", "two"): 8, ("cpu1", "three"): 1}
        )
        for node in ("node-a", "node-b")
    ]
    return children(make_ensemble(), UID, plans, DIGESTS, SETTINGS)


def simulated_devices() -> Objects:
    stated = {"simulated": [{"type": "dream", "memoryMib": 64}]}
    plan = make_plan([simulated("sim0")], {("sim0", m): 8 for m in DIGESTS})
    return children(make_ensemble(devices=stated), UID, [plan], DIGESTS, SETTINGS)


def models_from_everywhere() -> Objects:
    models = {
        "one": {"uri": "s3://bucket/one.onnx", "secretName": "store"},
        "two": {"uri": "pvc://shared/models/two.onnx"},
        "three": {"format": "TorchScript"},
    }
    plan = make_plan([cpu("cpu0")], {("cpu0", m): 8 for m in DIGESTS})
    return children(make_ensemble(models=models), UID, [plan], DIGESTS, SETTINGS)


def a_copy_on_two_nodes() -> Objects:
    shadow = {"serving": {"quorum": {"minMembers": 3, "deadlineMs": 50}}}
    devices = [gpu("gpu0"), gpu("gpu1"), gpu("gpu0", "node-b")]
    cells = [("node-a", "gpu0", "one", 8), ("node-a", "gpu1", "one", 8), ("node-a", "gpu1", "two", 8)]
    far = [("node-b", "gpu0", "two", 32), ("node-b", "gpu0", "three", 1)]
    return children(make_ensemble(**shadow), UID, [make_plan_on(devices, [*cells, *far])], DIGESTS, SETTINGS)


def measuring_on_a_gpu() -> Objects:
    ensemble = make_ensemble(models={"one": {"uri": "s3://bucket/one.onnx", "secretName": "store"}})
    return profiling_objects(ensemble, UID, ensemble.spec.members[0], gpu("gpu3"), SETTINGS, digest="a" * 64)


def measuring_on_cores() -> Objects:
    ensemble = make_ensemble(models={"one": {"uri": "pvc://shared/one.onnx"}})
    return profiling_objects(ensemble, UID, ensemble.spec.members[0], cpu("cpu0"), SETTINGS, batch_sizes=[4])


def measuring_on_a_pair() -> Objects:
    ensemble = make_ensemble(models={"one": {"uri": "s3://bucket/one.onnx", "secretName": "store"}})
    member = ensemble.spec.members[0].model_copy(update={"partition": Partition(objective="Memory", latency_ms=20)})
    return profiling_objects(ensemble, UID, member, gpu("gpu3"), SETTINGS, second=cpu("cpu0"), digest="a" * 64)


CASES = (
    anonymous_gpus,
    claimed_gpus,
    two_copies_on_cores,
    simulated_devices,
    models_from_everywhere,
    a_copy_on_two_nodes,
    measuring_on_a_gpu,
    measuring_on_cores,
    measuring_on_a_pair,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_objects_are_those_that_were_agreed(case: Callable[[], Objects]) -> None:
    file = GOLDEN / f"{case.__name__}.yaml"
    text = yaml.safe_dump_all(case(), sort_keys=False, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert list(yaml.safe_load_all(file.read_text())) == list(yaml.safe_load_all(text))
