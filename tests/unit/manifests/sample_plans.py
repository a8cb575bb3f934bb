"""Ensembles and plans to build pods from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.budget import budget
from ensemble_operator.manifests.deployment import copy_objects, spans_nodes
from ensemble_operator.manifests.network import shards_policy
from ensemble_operator.manifests.objects import Owner
from ensemble_operator.manifests.revision import revision
from ensemble_operator.manifests.service import service, shards_service
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

MIB = 2**20
UID = "6f1c0f6e-0000-4000-8000-000000000001"
SETTINGS = PodSettings(image_onnx="registry.example/runtime:onnx", image_full="registry.example/runtime:full")
DIGESTS = {name: digit * 64 for name, digit in (("one", "a"), ("two", "b"), ("three", "c"))}

Cells = Mapping[tuple[str, str], int]


def make_ensemble(
    name: str = "trio", *, models: Mapping[str, Mapping[str, Any]] | None = None, **spec: Any
) -> InferenceEnsemble:
    """Three ONNX members; `models` changes their sources, `spec` all else."""
    members = [
        {"name": m, "model": {"uri": f"https://models.example/{m}.onnx", "format": "ONNX", **(models or {}).get(m, {})}}
        for m in DIGESTS
    ]
    document = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {
            "members": members,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}],
            **spec,
        },
    }
    return load_manifest(yaml.safe_dump(document), folder="/models").ensemble


def gpu(name: str, node: str = "node-a", product: str = "NVIDIA-A100-SXM4-40GB", uuid: str | None = None) -> Device:
    source, driver = ("ResourceSlices", "gpu.nvidia.com") if uuid else ("Labels", None)
    return Device(name, node, DeviceKind.GPU, product, 40_000 * MIB, uuid=uuid, source=source, driver=driver)


def cpu(name: str, node: str = "node-a", cores: int = 2) -> Device:
    return Device(name, node, DeviceKind.CPU, f"cpu-{cores}", 8192 * MIB, source="Node")


def simulated(name: str) -> Device:
    return Device(name, "local", DeviceKind.SIMULATED, "dream", 64 * MIB, source="manifest")


def make_plan(devices: Sequence[Device], cells: Cells) -> Plan:
    """A plan of these cells, (device, member) -> batch size, on one node, whatever it is worth."""
    return make_plan_on(devices, [(devices[0].node, device, m, size) for (device, m), size in cells.items()])


def make_plan_on(devices: Sequence[Device], cells: Sequence[tuple[str, str, str, int]]) -> Plan:
    """A plan of these cells: node, device, member, batch size."""
    placed = {(node, device, m): size for node, device, m, size in cells}
    types = {device.type for device in devices}
    points = tuple(Point(size, 0.001 * size, (100 + size) * MIB) for size in (1, 8, 32))
    members = tuple(PlanMember(m, {t: Profile(d, t, "FP32", points) for t in types}) for m, d in DIGESTS.items())
    matrix = tuple(tuple(placed.get((d.node, d.name, m), 0) for m in DIGESTS) for d in devices)
    work = tuple(tuple(float(size > 0) for size in row) for row in matrix)
    return Plan(Problem(tuple(devices), members), matrix, work, work, 1234.5, 2000.0, 600.0, devices[0].name, "one")


def children(
    ensemble: InferenceEnsemble,
    uid: str,
    copies: Sequence[Plan] | Mapping[int, Plan],
    digests: Mapping[str, str],
    settings: PodSettings,
) -> list[dict[str, Any]]:
    """Everything that copies need to serve, the pods last; but for the token, which is never the same twice."""
    owner = Owner.of(ensemble, uid)
    plans = dict(copies if isinstance(copies, Mapping) else enumerate(copies))
    common = [service(owner, revision(ensemble.spec, digests)), budget(owner, len(plans))]
    if spans_nodes(plans.values()):
        common += [shards_service(owner), shards_policy(owner)]
    made = [o for copy, plan in plans.items() for o in copy_objects(ensemble, uid, copy, plan, digests, settings)]
    # Copies with the same configuration share its ConfigMap.
    once = {(o["kind"], o["metadata"]["name"]): o for o in (*filter(None, common), *made)}
    return sorted(once.values(), key=lambda o: bool(o["kind"] == "Pod"))
