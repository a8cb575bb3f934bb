"""What holds for the pods of every plan."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pod_security import violations
from sample_plans import DIGESTS, MIB, SETTINGS, UID, children, cpu, gpu, make_ensemble, make_plan, simulated

from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests import labels
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import DeviceKind, RuntimeConfig, core_count
from ensemble_runtime.sizes import shared_memory_bound

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

ensemble_names = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@st.composite
def plans(draw: st.DrawFn, node: str) -> Plan:
    """A plan on one node: every member has a cell, and every device has one."""
    kind = draw(st.sampled_from(["anonymous", "claimed", "cores", "mixed", "simulated"]))
    count = draw(st.integers(1, 4))
    devices: list[Device] = {
        "anonymous": [gpu(f"gpu{3 * i}", node) for i in range(count)],
        "claimed": [gpu(f"gpu-{i}", node, uuid=f"GPU-{i}") for i in range(count)],
        "cores": [cpu(f"cpu{i}", node, cores=3) for i in range(count)],
        "mixed": [gpu("gpu0", node), *(cpu(f"cpu{i}", node) for i in range(count))],
        "simulated": [simulated(f"sim{i}") for i in range(count)],
    }[kind]
    sizes = st.sampled_from([0, 1, 8, 32])
    cells = {(d.name, m): draw(sizes) for d in devices for m in DIGESTS}
    for i, m in enumerate(DIGESTS):
        cells[devices[i % len(devices)].name, m] = 8
    for d in devices:
        if not any(cells[d.name, m] for m in DIGESTS):
            cells[d.name, "one"] = 1
    return make_plan(devices, cells)


@st.composite
def deployments(draw: st.DrawFn) -> tuple[list[Plan], list[dict[str, Any]]]:
    formats = draw(st.sampled_from(["ONNX", "TorchScript"]))
    source = draw(st.sampled_from([{}, {"uri": "pvc://claim/one.onnx"}, {"uri": "s3://b/one", "secretName": "store"}]))
    ensemble = make_ensemble(
        draw(ensemble_names),
        models={"one": source, "two": {"format": formats}},
        serving={"queueRows": draw(st.integers(1, 100_000))},
    )
    found = [draw(plans(f"node-{i}")) for i in range(draw(st.integers(1, 3)))]
    return found, children(ensemble, UID, found, DIGESTS, SETTINGS)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind]


def mib(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def millis(quantity: str) -> int:
    return int(quantity[:-1]) if quantity.endswith("m") else 1000 * int(quantity)


every = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@every
@given(deployments())
def test_names_are_short_enough_and_different(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    _, objects = made
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    assert all(DNS_LABEL.fullmatch(name) for _, name in names)
    for o in objects:
        assert o["metadata"]["ownerReferences"][0]["uid"] == UID
        assert all(LABEL_VALUE.fullmatch(value) for value in o["metadata"]["labels"].values())


@every
@given(deployments())
def test_every_pod_passes_the_restricted_profile(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    _, objects = made
    for pod in of_kind(objects, "Pod"):
        assert violations(pod["spec"]) == []
        assert pod["spec"]["automountServiceAccountToken"] is False
        containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
        assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in containers)


@every
@given(deployments())
def test_a_pod_asks_for_its_devices_and_no_others(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    found, objects = made
    pods = of_kind(objects, "Pod")
    assert len(pods) == len(found)
    for plan, pod in zip(found, pods, strict=True):
        container = pod["spec"]["containers"][0]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        used = {d.name: d for d, _, _ in plan.cells}.values()
        gpus = [d for d in used if d.kind is DeviceKind.GPU]
        cores = sum(core_count(d.type) for d in used if d.kind is DeviceKind.CPU)
        assert int(requests.get("nvidia.com/gpu", 0)) == sum(d.uuid is None for d in gpus)
        assert ("claims" in container["resources"]) == any(d.uuid for d in gpus)
        environment = {e["name"]: e["value"] for e in container["env"]}
        assert (environment.get("NVIDIA_VISIBLE_DEVICES") == "void") == (not gpus)
        if cores and not gpus:
            assert millis(requests["cpu"]) == 1000 * cores
        if cores:  # guaranteed, in whole cores: the kubelet may pin them
            assert requests == limits and millis(requests["cpu"]) % 1000 == 0
            assert all(
                c["resources"]["requests"] == c["resources"]["limits"] for c in pod["spec"].get("initContainers", ())
            )


@every
@given(deployments())
def test_memory_holds_the_arena_and_the_cells(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    found, objects = made
    configs = {o["metadata"]["name"]: o["data"] for o in of_kind(objects, "ConfigMap")}
    for plan, pod in zip(found, of_kind(objects, "Pod"), strict=True):
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        config = RuntimeConfig.model_validate_json(configs[volumes["config"]["configMap"]["name"]]["config.json"])
        shared = mib(volumes["shm"]["emptyDir"]["sizeLimit"])
        assert shared * MIB >= shared_memory_bound(config)
        on_cores = sum((100 + size) for d, _, size in plan.cells if d.kind is DeviceKind.CPU)
        memory = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert mib(memory) >= shared + on_cores
        promised = sum(d.memory_bytes for d in config.devices if d.kind is DeviceKind.CPU)
        assert promised == on_cores * MIB


@every
@given(deployments())
def test_the_configuration_is_the_plans(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    found, objects = made
    configs = {o["metadata"]["name"]: o["data"] for o in of_kind(objects, "ConfigMap")}
    for plan, pod in zip(found, of_kind(objects, "Pod"), strict=True):
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        config = RuntimeConfig.model_validate_json(configs[volumes["config"]["configMap"]["name"]]["config.json"])
        assert {(c.device, c.member, c.batch_size) for c in config.cells} == {(d.name, m, b) for d, m, b in plan.cells}
        assert all(not d.cores and (d.uuid is None or "GPU" in d.uuid) for d in config.devices)
        assert all(m.model.secret_name is None and not m.model.uri.startswith("pvc:") for m in config.members)


@every
@given(deployments())
def test_a_restarted_operator_reads_from_a_pod_what_it_runs(made: tuple[list[Plan], list[dict[str, Any]]]) -> None:
    found, objects = made
    for plan, pod in zip(found, of_kind(objects, "Pod"), strict=True):
        annotations = pod["metadata"]["annotations"]
        assert set(labels.running(annotations)) == set(plan.cells)
        assert set(labels.held(annotations)) == {d for d, _, _ in plan.cells}
        assert json.loads(annotations[labels.DEVICES])
