"""From manifest to the planner's question, and from its answer to the runtime's configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from ensemble_operator.api.manifest import Manifest, load_manifest
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.simulated import simulated_devices
from ensemble_operator.manifests.question import pair_wants, question, usable, wants
from ensemble_operator.manifests.runtime_config import runtime_config
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.table import ProfileTable, table, written
from ensemble_runtime.config import DeviceKind, Listen, RuntimeConfig
from ensemble_runtime.errors import DeviceUnavailableError, ManifestError

A, B = "a" * 64, "b" * 64
DIGESTS = {"one": A, "two": B}
CPU = Device("cpu0", "local", DeviceKind.CPU, "cpu-1", 2**30, cores=(0,))
GPU = Device("gpu0", "local", DeviceKind.GPU, "A100", 2**34, uuid="GPU-1")


def manifest(**spec: Any) -> Manifest:
    members = [
        {"name": "one", "model": {"uri": "https://h/1.onnx", "format": "ONNX", "sha256": A}, "batchSizes": [1, 8]},
        {"name": "two", "model": {"uri": "https://h/2.onnx", "format": "ONNX", "sha256": B}, "weight": 3},
    ]
    tensors = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
    }
    document = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": "pair"},
        "spec": {"members": members, **tensors, **spec},
    }
    return load_manifest(yaml.safe_dump(document), folder="/")


def known(*types: str) -> ProfileTable:
    return table(
        Profile(digest, t, "FP32", (Point(1, 0.01, 2**20), Point(4, 0.02, 2**20), Point(8, 0.03, 2**20)))
        for digest in (A, B)
        for t in types
    )


def test_devices_of_kinds_that_may_not_serve_are_left_out() -> None:
    assert usable(manifest(devices={"kinds": ["CPU"]}).ensemble.spec, [GPU, CPU]) == (CPU,)
    assert usable(manifest().ensemble.spec, [GPU, CPU]) == (GPU, CPU)


def test_a_member_without_any_device_is_named() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"spec\.members\[0\]: 'one' may run on GPU; no such device"):
        usable(manifest(devices={"kinds": ["GPU"]}).ensemble.spec, [CPU])


def test_the_manifest_says_what_nodes_and_moves_cost() -> None:
    plain, dear = manifest(), manifest(objective={"nodeCost": 0.2, "moveCost": 0.3})
    problems = [question(found.ensemble.spec, DIGESTS, [CPU], known("cpu-1")) for found in (plain, dear)]
    assert [(problem.node_cost, problem.move_cost) for problem in problems] == [(0.001, 0.01), (0.2, 0.3)]


def test_of_too_many_devices_the_most_capable_stay() -> None:
    small, large = (replace(GPU, name=f"gpu{i}", memory_bytes=i * 2**30) for i in (1, 2))
    found = [CPU, small, large]
    assert usable(manifest(devices={"max": 2}).ensemble.spec, found) == (small, large)
    assert usable(manifest(devices={"max": 1}).ensemble.spec, found) == (large,)
    assert usable(manifest(devices={"max": 3}).ensemble.spec, found) == tuple(found)


def test_a_member_keeps_a_device_that_it_may_run_on() -> None:
    spec = manifest(devices={"max": 2}).ensemble.spec
    only_cpu = spec.members[1].model_copy(update={"device_kinds": (DeviceKind.CPU,)})
    spec = spec.model_copy(update={"members": (spec.members[0], only_cpu)})
    others = [replace(GPU, name=f"gpu{i}") for i in range(3)]
    assert usable(spec, [*others, CPU]) == (others[0], CPU)
    with pytest.raises(DeviceUnavailableError, match=r"spec\.devices\.max: 1; the members' deviceKinds need 2"):
        usable(spec.model_copy(update={"devices": spec.devices.model_copy(update={"max": 1})}), [*others, CPU])


def test_profiles_are_wanted_once_for_each_type_that_may_run_the_member() -> None:
    spec = manifest().ensemble.spec
    spec = spec.model_copy(
        update={"members": (spec.members[0], spec.members[1].model_copy(update={"device_kinds": (DeviceKind.GPU,)}))}
    )
    found = [(w.digest, w.device_type) for w in wants(spec, DIGESTS, [GPU, CPU, CPU])]
    assert found == [(A, "A100"), (A, "cpu-1"), (B, "A100")]


def test_only_permitted_batch_sizes_are_asked_about() -> None:
    problem = question(manifest().ensemble.spec, DIGESTS, [GPU, CPU], known("cpu-1"))
    assert {t: [p.batch_size for p in profile.points] for t, profile in problem.members[0].profiles.items()} == {
        "cpu-1": [1, 8]
    }
    assert [p.batch_size for p in problem.members[1].profiles["cpu-1"].points] == [1, 4, 8]


def test_a_member_that_nothing_is_known_of_is_named() -> None:
    with pytest.raises(ManifestError, match=r"spec\.members\[0\]: no profile of 'one' .* on A100, cpu-1"):
        question(manifest().ensemble.spec, DIGESTS, [GPU, CPU], ProfileTable())


def test_interference_goes_from_digests_to_members() -> None:
    profiles = known("cpu-1").merge(ProfileTable({}, {("cpu-1", A, B): 0.8, ("cpu-1", A, "c" * 64): 0.5}))
    problem = question(manifest().ensemble.spec, DIGESTS, [CPU], profiles)
    assert problem.interference == {("cpu-1", "one", "two"): 0.8}


def test_a_plan_becomes_a_configuration_that_serves_it() -> None:
    here = manifest()
    problem = question(here.ensemble.spec, DIGESTS, [GPU, CPU], known("cpu-1"))
    plan = make_plan(problem)
    config = runtime_config(here.ensemble, DIGESTS, plan, Listen(port=9000))
    assert RuntimeConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config
    assert [device.name for device in config.devices] == ["cpu0"]
    assert config.devices[0].cores == (0,)
    assert {(c.device, c.member, c.batch_size) for c in config.cells} == {(d.name, m, b) for d, m, b in plan.cells}
    assert [m.model.sha256 for m in config.members] == [A, B]
    assert config.members[1].weight == 3
    assert config.predicted_rows_per_second == plan.rate
    assert config.listen.port == 9000


@pytest.mark.parametrize(
    ("serving", "seconds", "patience"),
    [({}, 4, 12), ({}, 3, 10), ({}, 4000, 3600), ({"memberTimeoutMs": 9000}, 4, 9), ({"timeoutMs": 60_000}, 4, 20)],
    ids=str,
)
def test_a_member_is_not_taken_for_hung_by_batches_as_long_as_the_plan_knows(
    serving: dict[str, int], seconds: float, patience: float
) -> None:
    here = manifest(serving=serving)
    slow = table(Profile(digest, "cpu-1", "FP32", (Point(1, seconds, 2**20),)) for digest in (A, B))
    problem = question(here.ensemble.spec, DIGESTS, [CPU], slow)
    config = runtime_config(here.ensemble, DIGESTS, make_plan(problem), Listen())
    assert config.serving.patience == patience


def test_simulated_devices_bear_their_stated_costs() -> None:
    here = manifest(devices={"simulated": [{"type": "A100", "count": 2, "memoryMib": 64}]})
    devices = simulated_devices(here.ensemble.spec.devices.simulated)
    assert [(d.name, d.memory_bytes) for d in devices] == [("sim0", 64 * 2**20), ("sim1", 64 * 2**20)]
    problem = question(here.ensemble.spec, DIGESTS, usable(here.ensemble.spec, devices), known("A100"))
    config = runtime_config(here.ensemble, DIGESTS, make_plan(problem), Listen())
    assert {device.kind for device in config.devices} == {DeviceKind.SIMULATED}
    for device in config.devices:
        placed = {cell.member for cell in config.cells if cell.device == device.name}
        assert set(device.seconds) == placed
        if "one" in placed:
            assert device.seconds["one"] == {1: 0.01, 8: 0.03}


def test_profiles_in_the_manifest_are_enough_to_plan() -> None:
    here = manifest(devices={"simulated": [{"type": "A100", "memoryMib": 64}]})
    assert written(here.profiles).missing(wants(here.ensemble.spec, DIGESTS, [])) == ()


def test_a_member_with_partition_may_stand_on_a_gpu_and_cores() -> None:
    partition = {"partition": {"objective": "Latency"}}
    plain = manifest()
    members = [
        m.model_copy(update={"device_kinds": (DeviceKind.GPU, DeviceKind.CPU)}) for m in plain.ensemble.spec.members
    ]
    members[1] = type(members[1]).model_validate(members[1].model_dump(mode="json", by_alias=True) | partition)
    spec = plain.ensemble.spec.model_copy(update={"members": tuple(members)})
    assert [want.device_type for want in pair_wants(spec, DIGESTS, (GPU, CPU))] == ["A100:cpu-1"]
    large = Profile(B, "A100", "FP32", (Point(1, 0.001, 2**40),))
    over = Profile(B, "A100:cpu-1", "FP32", (Point(1, 0.02, 2**20, 2**21),))
    profiles = table([*(p for p in known("A100").profiles.values() if p.digest == A), large, over])
    problem = question(spec, DIGESTS, (GPU, CPU), profiles, pairs=True)
    assert [set(member.pairs) for member in problem.members] == [set(), {"A100:cpu-1"}]
    ensemble = plain.ensemble.model_copy(update={"spec": spec})
    config = runtime_config(ensemble, DIGESTS, make_plan(problem), Listen())
    assert [(d.name, d.kind) for d in config.devices] == [("gpu0", DeviceKind.GPU), ("cpu0", DeviceKind.CPU)]
    assert {cell.member: cell.second_device for cell in config.cells} == {"one": None, "two": "cpu0"}
    assert {cell.member: cell.scarce_bytes for cell in config.cells} == {"one": None, "two": 2**20}
    assert not question(spec, DIGESTS, (GPU, CPU), profiles).members[1].pairs
