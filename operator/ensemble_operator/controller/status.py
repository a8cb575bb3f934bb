"""The status of an ensemble, from what was decided and what is seen. Pure: the time is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.status import ConditionType
from ensemble_operator.controller.changes import Changes, There, wanted_sets
from ensemble_operator.controller.decision import Decision, Missing
from ensemble_operator.controller.events import Notice
from ensemble_operator.controller.measuring import pod_of
from ensemble_operator.controller.records import EnsembleRecord, OwnPod
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import digest
from ensemble_operator.manifests.objects import Owner
from ensemble_operator.manifests.service import endpoint
from ensemble_operator.planner.plan import Plan

Said = Literal["True", "False", "Unknown"]

_WISHED: Mapping[ConditionType, Said] = {
    ConditionType.ACCEPTED: "True",
    ConditionType.PROFILED: "True",
    ConditionType.PLANNED: "True",
    ConditionType.SUSPENDED: "False",
    ConditionType.DEGRADED: "False",
    ConditionType.READY: "True",
    ConditionType.PROGRESSING: "False",
}
"""What each condition is to be, those first whose failure explains the others."""

_DIGITS = 4
_LONGEST = 4096
_ROWS = 4096  # the CRD permits no more, and would refuse the status as a whole


@dataclass(frozen=True, slots=True)
class Aspect:
    """One condition, without what only time adds."""

    type: ConditionType
    status: Said
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What pods report of themselves."""

    uuids: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(pod, device) -> UUID of the GPU behind the slot."""
    rate: float | None = None
    """Rows per second, over all heads."""


@dataclass(frozen=True, slots=True)
class View:
    """All that a status is made from."""

    record: EnsembleRecord
    ensemble: InferenceEnsemble | None
    """None: the spec is refused."""
    decision: Decision
    there: There
    changes: Changes
    problem: str | None = None
    """What the API server refused."""
    observed: Observed = Observed()


def status(view: View, before: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The status; where nothing changed it is the one before.

    Args:
        view: What is known.
        before: The status as it is now.
        now: The time, as Kubernetes writes it.
    """
    aspects = _aspects(view)
    ensemble, decision = view.ensemble, view.decision
    plans = decision.plans
    written = {
        "observedGeneration": view.record.generation,
        "conditions": _timed(aspects, before.get("conditions") or (), view.record.generation, now),
        "replicas": len({pod.labels.get(labels.COPY) for pod in view.there.pods.values() if not pod.deleting}),
        "readyReplicas": view.changes.steps.ready_copies,
        "selector": labels.selector(labels.heads(view.record.name)),
        "reason": _reason(aspects),
        "plan": _plan_hash(plans),
        "rate": _rounded(sum(plan.rate for plan in plans.values())) if plans else None,
        "observedRate": _rounded(view.observed.rate),
        "bottleneck": _bottleneck(plans),
        "devices": len(_devices(plans)) if plans else 0,
        "nodes": len({node for node, _ in _devices(plans)}) if plans else 0,
        "members": _members(view) if ensemble is not None else None,
        "matrix": _matrix(view),
        "endpoints": [endpoint(Owner.of(ensemble, view.record.uid))]
        if ensemble and view.changes.steps.ready_copies
        else [],
        "lastFailure": _last_failure(view.there.pods) or before.get("lastFailure"),
        "preemptedBy": decision.preempted_by,
        "inventory": _inventory(decision) if decision.waiting else None,
    }
    if decision.fault is not None or decision.frozen:  # what was said of what runs still holds
        kept = ("plan", "rate", "bottleneck", "devices", "nodes", "matrix", "members", "preemptedBy")
        written |= {name: before.get(name) for name in kept}
    return {name: value for name, value in written.items() if value is not None and value != []}


def notices(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Notice]:
    """What of a change of status is worth an Event: each condition that is not what it was."""
    old = {c["type"]: (c["status"], c["reason"]) for c in before.get("conditions") or ()}
    found = []
    for condition in after["conditions"]:
        kind, said = ConditionType(condition["type"]), (condition["status"], condition["reason"])
        if said == old.get(condition["type"]) or (condition["type"] not in old and said[0] != "False"):
            continue
        if condition["type"] not in old and _WISHED[kind] == said[0]:
            continue
        severe = kind not in (ConditionType.PROGRESSING, ConditionType.SUSPENDED) and said[0] != _WISHED[kind]
        patience = condition["reason"] in _PATIENT
        found.append(
            Notice("Warning" if severe and not patience else "Normal", said[1], condition["message"] or kind.value)
        )
    return found


_BACK = "what served before goes on, until the spec is changed"

_PATIENT = {"Profiling", "Starting", "Waiting"}
"""Reasons that time mends."""


def conditions_of(written: Mapping[str, Any]) -> dict[str, str]:
    """Condition type -> status."""
    return {c["type"]: c["status"] for c in written.get("conditions") or ()}


def _aspects(view: View) -> list[Aspect]:
    decision = view.decision
    if decision.fault is not None:
        refused = Aspect(ConditionType.ACCEPTED, "False", "Invalid", decision.fault)
        unknown = [Aspect(kind, "Unknown", "NotAccepted") for kind in (ConditionType.PROFILED, ConditionType.PLANNED)]
        return [refused, *unknown, *_running(view)]
    accepted = Aspect(ConditionType.ACCEPTED, "True", "Valid")
    return [accepted, _profiled(decision), _planned(view), *_running(view)]


def _profiled(decision: Decision) -> Aspect:
    kind = ConditionType.PROFILED
    if decision.suspended:
        return Aspect(kind, "Unknown", "Suspended")
    if not decision.missing:
        return Aspect(kind, "True", "Measured")
    failed = [m for m in decision.missing if m.given_up is not None]
    if failed:
        told = "; ".join(f"{_measuring(m)}: {m.given_up}" for m in failed)
        return Aspect(kind, "False", "ProfilingFailed", told)
    stuck = [m for m in decision.missing if m.trouble is not None]
    if stuck:
        told = "; ".join(f"{_measuring(m)}: {m.trouble}" for m in stuck)
        return Aspect(kind, "False", _word(stuck[0].trouble or ""), told)
    waits = ", ".join(f"{m.member} on {m.want[1]}" for m in decision.missing)
    if not any(m.device or m.measuring for m in decision.missing):
        return Aspect(kind, "False", "NoDeviceToMeasureOn", f"no device is free to measure {waits}")
    return Aspect(kind, "False", "Profiling", f"measures {waits}")


def _measuring(missing: Missing) -> str:
    return f"pod {pod_of(missing.want)}, which measures {missing.member} on {missing.want[1]}"


def _planned(view: View) -> Aspect:
    kind, decision = ConditionType.PLANNED, view.decision
    if decision.suspended:
        return Aspect(kind, "False", "Suspended")
    if view.changes.problem is not None:
        return Aspect(kind, "False", "NotServable", view.changes.problem)
    if decision.preempted_by is not None and decision.waiting is None:
        return Aspect(kind, "False", "Preempted", f"{decision.preempted_by} has taken its devices")
    if decision.waiting is not None:
        if decision.frozen and (decision.missing or decision.revision is None):
            return Aspect(kind, "Unknown", "Waiting", decision.waiting)
        if decision.frozen and decision.revision is not None:
            return Aspect(kind, "False", "UpgradeBlocked", decision.waiting)
        reason = "Preempted" if decision.preempted_by else "DoesNotFit"
        by = f"{decision.preempted_by} has taken its devices; " if decision.preempted_by else ""
        return Aspect(kind, "False", reason, by + decision.waiting)
    copies = len(decision.plans)
    return Aspect(kind, "True", "Planned", f"{copies} {'copy' if copies == 1 else 'copies'}")


def _running(view: View) -> list[Aspect]:
    """Progressing, Ready, Degraded and Suspended: what the pods show."""
    decision, now, pods = view.decision, view.changes.steps, view.there.pods
    suspended = decision.suspended or decision.dry
    aspects = []
    if suspended:
        reason = "Suspended" if decision.suspended else "PlanOnly"
        going = len(pods)
        aspects.append(
            Aspect(ConditionType.PROGRESSING, "True", "Stopping", f"{going} pods are ending")
            if going
            else Aspect(ConditionType.PROGRESSING, "False", reason)
        )
        aspects.append(Aspect(ConditionType.READY, "False", reason))
        aspects.append(Aspect(ConditionType.DEGRADED, "False", reason))
    else:
        wanted = (
            view.ensemble.spec.replicas if view.ensemble else len({p.labels.get(labels.COPY) for p in pods.values()})
        )
        aspects += [_progressing(view), _ready(now.ready_copies, wanted), _degraded(view)]
    off = Aspect(ConditionType.SUSPENDED, "False", "Serving" if not decision.dry else "PlanOnly")
    aspects.append(Aspect(ConditionType.SUSPENDED, "True", "Suspended") if decision.suspended else off)
    return aspects


def _progressing(view: View) -> Aspect:
    kind, decision, changes = ConditionType.PROGRESSING, view.decision, view.changes
    if changes.steps.blocked is not None:
        return Aspect(kind, "False", "UpgradeBlocked", changes.steps.blocked)
    if decision.fault is not None or decision.frozen:
        return Aspect(kind, "False", "Waiting")
    if changes.progress.late is not None:
        return Aspect(kind, "False", "ProgressDeadlineExceeded", changes.progress.late)
    if changes.steps.crowded is not None:
        return Aspect(kind, "True", "UpgradeBlocked", f"no room beside what runs: {changes.steps.crowded}")
    wanted = {name for want in (_sets(view)) for name in want.pods}
    ready = {
        name for name in wanted if (pod := view.there.pods.get(name)) is not None and pod.ready and not pod.deleting
    }
    others = [
        name
        for name, pod in view.there.pods.items()
        if name not in wanted and int(pod.labels.get(labels.COPY, 0)) not in decision.stranded
    ]
    if ready == wanted and not others:
        if decision.retreat is not None:
            return Aspect(kind, "False", "RolledBack", "what served before serves")
        return Aspect(kind, "False", "Complete" if wanted else "Waiting")
    if decision.retreat is not None:
        return Aspect(kind, "True", "RollingBack", f"{len(ready)} of {len(wanted)} pods that served before are ready")
    if others:
        return Aspect(
            kind, "True", "Replacing", f"{len(ready)} of {len(wanted)} pods are ready, {len(others)} are to go"
        )
    return Aspect(kind, "True", "Starting", f"{len(ready)} of {len(wanted)} pods are ready")


def _sets(view: View) -> Sequence[Any]:
    return wanted_sets(view.ensemble, view.decision) if view.ensemble is not None else ()


def _ready(ready: int, wanted: int) -> Aspect:
    kind = ConditionType.READY
    if wanted == 0:
        return Aspect(kind, "False", "NoCopies", "spec.replicas is 0")
    if ready == 0:
        return Aspect(kind, "False", "NotReady", f"0 of {wanted} copies serve")
    return Aspect(kind, "True", "Serving", f"{ready} of {wanted} copies serve")


def _degraded(view: View) -> Aspect:
    kind = ConditionType.DEGRADED
    if view.problem is not None:
        return Aspect(kind, "True", "ApiError", view.problem)
    troubles = sorted((name, pod.trouble) for name, pod in view.there.pods.items() if pod.trouble and not pod.deleting)
    if troubles:
        name, trouble = troubles[0]
        return Aspect(kind, "True", _word(trouble), f"pod {name}: {trouble}")
    if view.changes.progress.late is not None:
        return Aspect(kind, "True", "ProgressDeadlineExceeded", view.changes.progress.late)
    if view.decision.retreat is not None:
        return Aspect(kind, "True", "RolledBack", f"{view.decision.retreat.message}; {_BACK}")
    wanted = view.ensemble.spec.replicas if view.ensemble else 0
    served = view.changes.steps.ready_copies
    if 0 < served < wanted:
        return Aspect(kind, "True", "FewerCopies", f"{served} of {wanted} copies serve")
    return Aspect(kind, "False", "AsPlanned")


def _word(trouble: str) -> str:
    """The reason at the head of what Kubernetes says, as a condition may have it."""
    word = trouble.partition(":")[0].strip()
    return word if word.isalnum() else "PodTrouble"


def _reason(aspects: Iterable[Aspect]) -> str | None:
    by_type = {aspect.type: aspect for aspect in aspects}
    wrong = (by_type[kind] for kind, wished in _WISHED.items() if kind in by_type and by_type[kind].status != wished)
    first = next(wrong, None)
    return first.reason if first else None


def _timed(
    aspects: Iterable[Aspect], before: Iterable[Mapping[str, Any]], generation: int, now: str
) -> list[dict[str, Any]]:
    """Conditions; the time of the last transition stays as long as the status of a condition does."""
    old = {c["type"]: c for c in before}
    return [
        {
            "type": a.type.value,
            "status": a.status,
            "reason": a.reason,
            "message": a.message[:_LONGEST],
            "observedGeneration": generation,
            "lastTransitionTime": old[a.type.value]["lastTransitionTime"]
            if a.type.value in old and old[a.type.value]["status"] == a.status
            else now,
        }
        for a in aspects
    ]


def _devices(plans: Mapping[int, Plan]) -> set[tuple[str, str]]:
    return {(device.node, device.name) for plan in plans.values() for device in plan.devices}


def _plan_hash(plans: Mapping[int, Plan]) -> str | None:
    """The plan's hash; of several copies one that tells all their plans."""
    hashes = [plan.digest for _, plan in sorted(plans.items())]
    return None if not hashes else hashes[0] if len(hashes) == 1 else digest(hashes, 16)


def _bottleneck(plans: Mapping[int, Plan]) -> str | None:
    if not plans:
        return None
    slowest = min((plan for _, plan in sorted(plans.items())), key=lambda plan: plan.rate)
    return f"{slowest.bottleneck}: {slowest.bottleneck_member}"


def _members(view: View) -> str:
    """Members of the copy that is furthest along whose pods are ready, of all."""
    assert view.ensemble is not None
    ready = 0
    for copy in {pod.labels.get(labels.COPY) for pod in view.there.pods.values()}:
        members = {
            member
            for pod in view.there.pods.values()
            if pod.labels.get(labels.COPY) == copy and pod.ready and not pod.deleting
            for _, member, _ in _cells(pod)
        }
        ready = max(ready, len(members))
    return f"{ready}/{len(view.ensemble.spec.members)}"


def _cells(pod: OwnPod) -> tuple[labels.Cell, ...]:
    try:
        return labels.running(pod.annotations)
    except ValueError:
        return ()


def _matrix(view: View) -> list[dict[str, Any]]:
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for copy, plan in sorted(view.decision.plans.items()):
        for device, member, batch in plan.cells:
            fresh = {
                "node": device.node,
                "device": device.name,
                "type": device.type,
                "source": device.source,
                "cells": [],
            }
            row = rows.setdefault((copy, device.node, device.name), fresh)
            uuid = device.uuid or _uuid(view, copy, device.node, device.name)
            row |= {"uuid": uuid} if uuid else {}
            row["cells"].append({"member": member, "batchSize": batch})
    return [rows[key] for key in sorted(rows)][:_ROWS]


def _uuid(view: View, copy: int, node: str, device: str) -> str | None:
    pods = (n for n, p in view.there.pods.items() if p.labels.get(labels.COPY) == str(copy) and p.node == node)
    return next((u for pod in pods if (u := view.observed.uuids.get((pod, device)))), None)


def _last_failure(pods: Mapping[str, OwnPod]) -> dict[str, Any] | None:
    """How a container ended that ended badly."""
    for name, pod in sorted(pods.items()):
        if pod.ended is not None and pod.ended.exit_code != 0:
            end = pod.ended
            return {"pod": name, "container": end.container, "exitCode": end.exit_code, "message": end.message}
    return None


def _inventory(decision: Decision) -> dict[str, Any]:
    supply = decision.supply
    return {"devices": supply.devices, "free": supply.free, "sources": list(supply.sources)}


def _rounded(value: float | None) -> float | None:
    """Few digits: what is beyond says nothing, and would make for writes. Whole numbers as the API server has them."""
    if value is None:
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
