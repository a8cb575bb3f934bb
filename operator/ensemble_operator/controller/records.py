"""What is kept of each object that was seen: slim, immutable, and equal where nothing that matters changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.controller.edition_record import EditionRecord, edition_record
from ensemble_operator.controller.resources import (
    CHILDREN,
    CLAIMS,
    ENSEMBLES,
    NODES,
    PODS,
    PROFILES,
    REVISIONS,
    SLICES,
    Resource,
)
from ensemble_operator.inventory.claim_record import allocated
from ensemble_operator.inventory.node_record import node_record
from ensemble_operator.inventory.pod_record import PodUse, claimed
from ensemble_operator.inventory.slices import slice_record
from ensemble_operator.manifests.labels import MANAGER
from ensemble_runtime.errors import ModelEvictedError

DIGEST = "ensembles.dev/digest"
"""Annotation of a child: the digest of the manifest that it was made from."""
COMPONENT = "app.kubernetes.io/component"
URI = "ensembles.dev/uri"
"""Annotation of a ModelProfile: where the measured file came from, which gives unpinned members their digest."""

_log = logging.getLogger(__name__)

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EnsembleRecord:
    """An InferenceEnsemble as it was written. Two are equal when the specs are, whatever the status."""

    uid: str
    namespace: str
    name: str
    created: str
    generation: int
    deleting: bool
    document: str
    """The spec, as canonical JSON."""
    status: str = field(compare=False)
    """The status, as canonical JSON."""

    def manifest(self) -> dict[str, Any]:
        """The document that `InferenceEnsemble` reads."""
        metadata = {"name": self.name, "namespace": self.namespace}
        spec = json.loads(self.document)
        return {"apiVersion": ENSEMBLES.api_version, "kind": ENSEMBLES.kind, "metadata": metadata, "spec": spec}


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """A ModelProfile that can be read."""

    document: ModelProfile
    uri: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended last."""

    container: str
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class OwnPod:
    """A pod of ours."""

    uid: str
    created: str
    owner: str | None
    """Uid of the ensemble that it belongs to."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    node: str
    address: str
    phase: str
    ready: bool
    deleting: bool
    trouble: str | None
    """Why it does not run: a reason in Kubernetes' words and what is behind it, e.g. 'ErrImagePull: ...'."""
    ended: Ended | None
    ready_since: str = ""
    """When it became ready, or ceased to be."""
    sick: bool = False
    """Whether its node reports a device that it holds as unhealthy."""
    bereft: bool = False
    """Whether its container cannot start again, for a model is gone from the cache which only a new pod can fetch."""


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod: what it takes of its node, and all else where it is ours."""

    use: PodUse | None
    own: OwnPod | None


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """Something that we made, other than a pod."""

    owner: str | None
    digest: str | None
    """Of the manifest that it was made from."""
    content: str
    """Hash of what it says now: it changes when somebody edits it."""
    deleting: bool
    component: str
    """What it is for: serving or profiling."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Of a ConfigMap that is not ours: the static inventory."""


def record_of(resource: Resource, body: Body) -> object | None:
    """What to keep of an object; None where it is of no interest, or cannot be read."""
    reader = _READERS.get(resource)
    try:
        return reader(body) if reader else None
    except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
        # Whatever one object says, the others are there.
        name = "/".join(filter(None, (body["metadata"].get("namespace"), body["metadata"]["name"])))
        _log.warning("%s %s is passed over, for it cannot be read: %r", resource.kind, name, error)
        return None


def canonical(value: object) -> str:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def content_of(body: Body) -> str:
    """Hash of what a child says, leaving out what the server adds to its metadata and all status."""
    said = {key: value for key, value in body.items() if key not in ("metadata", "status")}
    return hashlib.sha256(canonical([said, body["metadata"].get("labels")]).encode()).hexdigest()[:16]


def _ensemble(body: Body) -> EnsembleRecord:
    meta = body["metadata"]
    return EnsembleRecord(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        created=meta["creationTimestamp"],
        generation=meta["generation"],
        deleting="deletionTimestamp" in meta,
        document=canonical(body.get("spec") or {}),
        status=canonical(body.get("status") or {}),
    )


def _profile(body: Body) -> ProfileRecord | None:
    meta = body["metadata"]
    try:
        document = ModelProfile.model_validate({k: v for k, v in body.items() if k != "status"})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        name = f"{meta['namespace']}/{meta['name']}"
        _log.warning("ModelProfile %s is passed over: %s: %s", name, where, problem["msg"], extra={"profile": name})
        return None
    return ProfileRecord(document, (meta.get("annotations") or {}).get(URI))


def _pod(body: Body) -> PodRecord | None:
    use = claimed(body)
    own = _own(body, sick=use is not None and bool(use.broken)) if _ours(body) else None
    return PodRecord(use, own) if use or own else None


def _ours(body: Body) -> bool:
    return (body["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == MANAGER


def _owner(meta: Body) -> str | None:
    return next((o["uid"] for o in meta.get("ownerReferences") or () if o.get("controller")), None)


def _own(body: Body, *, sick: bool) -> OwnPod:
    meta, status = body["metadata"], body.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return OwnPod(
        uid=meta["uid"],
        created=meta["creationTimestamp"],
        owner=_owner(meta),
        labels=dict(meta.get("labels") or {}),
        annotations={k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith("ensembles.dev/")},
        node=body["spec"].get("nodeName") or "",
        address=status.get("podIP") or "",
        phase=status.get("phase") or "Pending",
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in meta,
        trouble=_trouble(status, conditions, containers),
        ended=_ended(containers),
        ready_since=conditions.get("Ready", {}).get("lastTransitionTime") or "",
        sick=sick,
        bereft=any(_end(container).get("exitCode") == ModelEvictedError.exit_code for container in containers),
    )


_KILLED = 128
"""And above: exit codes of processes that a signal has ended."""
_HARMLESS = {"ContainerCreating", "PodInitializing"}


def _trouble(status: Body, conditions: Mapping[str, Body], containers: list[Body]) -> str | None:
    told = next((told for told in map(_trouble_of, containers) if told is not None), None)
    if told is not None:
        return told
    if status.get("phase") == "Failed":
        return _said({"reason": status.get("reason") or "Failed", "message": status.get("message")})
    scheduled = conditions.get("PodScheduled", {})
    return _said(scheduled) if scheduled.get("status") == "False" else None


def _trouble_of(container: Body) -> str | None:
    """Why a container does not run or runs anew, with the words of the one before it that failed."""
    state = container.get("state") or {}
    waiting, end = state.get("waiting") or {}, state.get("terminated") or {}
    if not end and not container.get("started"):
        end = (container.get("lastState") or {}).get("terminated") or {}
    waits = waiting.get("reason") not in (None, *_HARMLESS)
    if not end.get("exitCode"):
        return _said(waiting) if waits else None
    word = (waiting if waits else end).get("reason") or "Error"
    told = f"container {container['name']} ended with {end['exitCode']}"
    last = (end.get("message") or "").strip().splitlines()[-1:]
    if end["exitCode"] < _KILLED:  # whoever is killed has no last words; what was logged before explains nothing
        told = ": ".join((told, *last))
    return _said({"reason": word, "message": told})


def _end(container: Body) -> Body:
    """How a container that does not run ended last."""
    state = container.get("state") or {}
    waits = (container.get("lastState") or {}).get("terminated") if "waiting" in state else None
    end: Body = state.get("terminated") or waits or {}
    return end


def _said(part: Body) -> str:
    return ": ".join(str(part[key])[:1024] for key in ("reason", "message") if part.get(key))


def _ended(containers: list[Body]) -> Ended | None:
    """The container that ended last, of those that have ended."""
    ends = [
        (end.get("finishedAt") or "", container["name"], end)
        for container in containers
        for end in (
            (container.get("state") or {}).get("terminated"),
            (container.get("lastState") or {}).get("terminated"),
        )
        if end
    ]
    if not ends:
        return None
    _, name, end = max(ends, key=lambda e: e[:2])
    return Ended(name, int(end.get("exitCode", 0)), str(end.get("message") or end.get("reason") or "")[:8192])


def _child(body: Body) -> ChildRecord:
    meta = body["metadata"]
    return ChildRecord(
        owner=_owner(meta),
        digest=(meta.get("annotations") or {}).get(DIGEST),
        content=content_of(body),
        deleting="deletionTimestamp" in meta,
        component=(meta.get("labels") or {}).get(COMPONENT, ""),
        data={} if _ours(body) else dict(body.get("data") or {}),
    )


def _edition(body: Body) -> EditionRecord | None:
    return edition_record(body, _owner(body["metadata"]))


_READERS: dict[Resource, Callable[[Body], object | None]] = {
    **dict.fromkeys(CHILDREN, _child),
    ENSEMBLES: _ensemble,
    PROFILES: _profile,
    NODES: node_record,
    PODS: _pod,
    REVISIONS: _edition,
    SLICES: slice_record,
    CLAIMS: allocated,
}
