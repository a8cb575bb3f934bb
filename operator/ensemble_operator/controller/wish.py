"""An ensemble that wants devices, and how it asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.api.placement import DevicePinning
from ensemble_operator.api.rollout import Mode, Preemption
from ensemble_operator.controller.placing import Copy, Request
from ensemble_operator.controller.records import EnsembleRecord
from ensemble_operator.controller.world import Key
from ensemble_operator.inventory.terms import Terms
from ensemble_operator.manifests.resources import GPU_BESIDE_MILLIS, GPU_MILLIS, MIB, PROCESSES_BYTES, TORCH_BYTES
from ensemble_operator.planner.problem import Problem
from ensemble_runtime.config import DeviceKind


@dataclass(frozen=True, slots=True)
class Wish:
    """An ensemble that wants devices, as far as it is understood."""

    key: Key
    record: EnsembleRecord
    """With the spec that is carried out."""
    spec: EnsembleSpec
    digests: Mapping[str, str]
    edition: str
    terms: Terms
    held: Mapping[int, Copy]
    """By copy, what it holds under its present revision, or under an older one."""
    changing: frozenset[int]
    """Copies that are held under an older revision."""
    settled: frozenset[int]
    """Copies that run as they are to, and have nothing to start."""


def terms_of(spec: EnsembleSpec) -> Terms:
    """Which devices an ensemble may use."""
    return Terms(
        kinds=frozenset(spec.devices.effective_kinds),
        cores_per_device=spec.devices.cpu_cores_per_device,
        tolerations=spec.placement.tolerations,
        node_selector=spec.placement.node_selector,
        pinned=spec.placement.device_pinning is DevicePinning.STRICT,
    )


def request_of(wish: Wish, problem: Problem) -> Request:
    """What it asks for: to stay on what it holds, where that does."""
    spec = wish.spec
    gpus_only = DeviceKind.CPU not in wish.terms.kinds
    # Cores beside the device of a partitioned member are a device of the copy, too.
    most = spec.devices.max or len(spec.members) + sum(bool(member.pairs) for member in problem.members)
    return Request(
        key="/".join(wish.key),
        members=problem.members,
        most=most,
        terms=wish.terms,
        copies=spec.replicas,
        priority=spec.priority,
        created=wish.record.created,
        preempts=spec.preemption is Preemption.LOWER_PRIORITY,
        dry=spec.mode is Mode.PLAN_ONLY,
        objective=spec.objective,
        interference=problem.interference,
        pod_millis=GPU_MILLIS * most if gpus_only else 0,
        gpu_millis=0 if gpus_only else GPU_MILLIS,
        gpu_beside_millis=0 if gpus_only else GPU_BESIDE_MILLIS,
        pod_bytes=PROCESSES_BYTES + TORCH_BYTES + 2 * spec.serving.max_body_mib * MIB,
        held={} if spec.mode is Mode.PLAN_ONLY else wish.held,
        starting=frozenset(wish.held) - wish.settled,
    )


def beside(wish: Wish, request: Request) -> Request:
    """The request with copies of an older revision planned on other devices than they hold; nobody gives way to it."""
    kept = {copy: held for copy, held in request.held.items() if copy not in wish.changing}
    return replace(request, held=kept, preempts=False)
