"""From what is wanted of an ensemble and what is there to what has to be applied and deleted. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.rollout import Strategy
from ensemble_operator.controller.decision import Decision
from ensemble_operator.controller.edition_record import EditionRecord
from ensemble_operator.controller.history import entries
from ensemble_operator.controller.progress import Progress, progress
from ensemble_operator.controller.records import DIGEST, ChildRecord, EnsembleRecord, OwnPod
from ensemble_operator.controller.resources import (
    BUDGETS,
    BY_KIND,
    CONFIG_MAPS,
    POLICIES,
    REVISIONS,
    SERVICES,
    TEMPLATES,
    Resource,
)
from ensemble_operator.controller.rollout import Removal, RunningPod, Steps, WantedSet, steps
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.budget import budget
from ensemble_operator.manifests.deployment import copy_objects, spans_nodes
from ensemble_operator.manifests.edition import edition_hash
from ensemble_operator.manifests.names import config_map_name, digest, pod_name
from ensemble_operator.manifests.network import shards_policy
from ensemble_operator.manifests.objects import Owner
from ensemble_operator.manifests.revision import copy_hash
from ensemble_operator.manifests.service import service, shards_service
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.manifests.shards import shards
from ensemble_operator.manifests.token import token_secret
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.errors import EnsembleError

Object = dict[str, Any]
ChildKey = tuple[Resource, str]
"""Kind and name."""


@dataclass(frozen=True, slots=True)
class There:
    """What is there of an ensemble."""

    pods: Mapping[str, OwnPod]
    """By name; those that serve, or are to."""
    children: Mapping[ChildKey, ChildRecord]
    """All else."""
    edited: frozenset[ChildKey] = frozenset()
    """Those that somebody has changed since they were applied."""
    editions: tuple[EditionRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Deletion:
    """An object to delete, and why."""

    resource: Resource
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do now."""

    apply: tuple[Object, ...] = ()
    """In this order: pods last, for they need the rest."""
    remove: tuple[Removal, ...] = ()
    """Pods."""
    delete: tuple[Deletion, ...] = ()
    """All else."""
    steps: Steps = field(default_factory=Steps)
    progress: Progress = field(default_factory=Progress)
    problem: str | None = None
    """Why the plans cannot be made into pods."""


def changes(
    record: EnsembleRecord,
    ensemble: InferenceEnsemble,
    decision: Decision,
    there: There,
    settings: PodSettings,
    now: datetime,
) -> Changes:
    """What takes an ensemble from what is there towards what is decided.

    Args:
        record: The ensemble as it was seen.
        ensemble: The same, as it is to be carried out.
        decision: What is to become of it.
        there: What is there.
        settings: The installation's part of pods.
        now: The time.
    """
    running = [running_pod(name, pod, decision.away) for name, pod in there.pods.items()]
    if decision.frozen:
        return Changes(steps=_as_it_is(running))
    plans = {} if decision.dry else decision.plans
    wanted = wanted_sets(ensemble, decision)
    next_ = steps(wanted, running, _strategy(ensemble, decision), decision.stranded)
    owner = Owner.of(ensemble, record.uid)
    far = _progress(ensemble, decision, wanted, there, now)
    history = entries(owner, ensemble.spec, decision, there.editions, far)
    objects: list[Object] = []
    try:
        for want in wanted:
            if set(want.pods) & set(next_.create) or _lacks_config(want, ensemble.metadata.name, there):
                made = copy_objects(ensemble, record.uid, want.copy, plans[want.copy], decision.digests, settings)
                objects += [o for o in made if o["kind"] != "Pod" or o["metadata"]["name"] in next_.create]
    except EnsembleError as error:
        return Changes(steps=_as_it_is(running), problem=str(error))
    shared = _shared(owner, decision, next_, len(wanted) + len(decision.stranded))
    between = _between_shards(owner, plans.values(), there)
    # Made once, and left alone: who reads no Secrets cannot know whether it is there, so it is tried with new pods.
    token = [token_secret(owner)] if next_.create and spans_nodes(plans.values()) else []
    needed = {(o["kind"], o["metadata"]["name"]) for o in (*objects, *shared, *between)}
    return Changes(
        apply=tuple(
            sorted(
                (
                    *(o for o in map(marked, (*shared, *between)) if _differs(o, there)),
                    *history.write,
                    *token,
                    *(marked(o) if o["kind"] != "Pod" else o for o in objects),
                ),
                key=lambda o: bool(o["kind"] == "Pod"),
            )
        ),
        remove=next_.delete,
        delete=(
            *_leftovers(ensemble.metadata.name, there, needed, keep_service=decision.suspended),
            *(Deletion(REVISIONS, edition.name, "it is not gone back to") for edition in history.strike),
        ),
        steps=next_,
        progress=far,
    )


def _strategy(ensemble: InferenceEnsemble, decision: Decision) -> Strategy:
    """The one asked for; but what was given up is not left where it is until somebody deletes it."""
    strategy = ensemble.spec.rollout.strategy
    return Strategy.ROLLING_UPDATE if decision.retreat and strategy is Strategy.ON_DELETE else strategy


def _progress(
    ensemble: InferenceEnsemble, decision: Decision, wanted: Iterable[WantedSet], there: There, now: datetime
) -> Progress:
    present = edition_hash(ensemble.spec, decision.digests) if decision.revision is not None else None
    began = next((e.created for e in there.editions if e.edition == present), None)
    return progress(wanted, there.pods, began, ensemble.spec.rollout.progress_timeout_seconds, now)


def wanted_sets(ensemble: InferenceEnsemble, decision: Decision) -> tuple[WantedSet, ...]:
    """The pods that are to serve, by copy."""
    if decision.dry or decision.revision is None:
        return ()
    found = []
    for copy, plan in sorted(decision.plans.items()):
        hash_ = copy_hash(plan, decision.revision)
        names = tuple(pod_name(ensemble.metadata.name, hash_, copy, shard.index) for shard in shards(plan))
        slots = frozenset((d.node, d.name) for d in plan.devices)
        found.append(WantedSet(copy, decision.revision, plan.digest, names, slots))
    return tuple(found)


def running_pod(name: str, pod: OwnPod, away: Container[str] = ()) -> RunningPod:
    """A pod as the rollout sees it; `away`: nodes that are gone or not heard of."""
    try:
        devices = frozenset((d.node, d.name) for d in labels.held(pod.annotations) if d.source != "manifest")
    except ValueError:
        devices = frozenset()
    return RunningPod(
        name=name,
        uid=pod.uid,
        copy=int(pod.labels.get(labels.COPY, 0)),
        revision=pod.labels.get(labels.REVISION, ""),
        plan=pod.labels.get(labels.PLAN, ""),
        devices=devices,
        head=pod.labels.get(labels.ROLE) == labels.HEAD,
        ready=pod.ready,
        deleting=pod.deleting,
        ended=pod.phase in ("Failed", "Succeeded") or pod.bereft,
        lost=pod.sick or any(node in away for node, _ in devices),
        sick=pod.sick,
    )


def marked(body: Object) -> Object:
    """The object with its own digest on it, so that it can be told whether it was made from another manifest."""
    metadata = body["metadata"]
    notes = {**metadata.get("annotations", {}), DIGEST: digest(body, 16)}
    return {**body, "metadata": {**metadata, "annotations": notes}}


def _as_it_is(running: Iterable[RunningPod]) -> Steps:
    """Nothing is to be done; only copies are counted."""
    ready = [pod for pod in running if pod.head and pod.ready and not pod.deleting]
    return Steps(serving=ready[0].revision if ready else None, ready_copies=len({pod.copy for pod in ready}))


def _shared(owner: Owner, decision: Decision, now: Steps, copies: int) -> list[Object]:
    """What all copies share: the Service, and the budget."""
    if decision.dry or decision.revision is None:
        return []
    found = budget(owner, copies)
    return [service(owner, now.serving or decision.revision), *([found] if found else [])]


def _between_shards(owner: Owner, plans: Iterable[Plan], there: There) -> list[Object]:
    """How the shards of a copy on several nodes find each other, and nobody else finds them; while there are some."""
    spans = spans_nodes(plans) or any(pod.labels.get(labels.ROLE) == labels.REMOTE for pod in there.pods.values())
    return [shards_service(owner), shards_policy(owner)] if spans else []


def _differs(body: Object, there: There) -> bool:
    key = (BY_KIND[body["kind"]], body["metadata"]["name"])
    seen = there.children.get(key)
    return seen is None or key in there.edited or seen.digest != body["metadata"]["annotations"][DIGEST]


def _lacks_config(want: WantedSet, name: str, there: There) -> bool:
    """Whether a pod that runs as wanted has lost its ConfigMap."""
    hashes = [there.pods[pod].labels.get(labels.CONFIG) for pod in want.pods if pod in there.pods]
    return any(
        hash_ is not None and (CONFIG_MAPS, config_map_name(name, hash_)) not in there.children for hash_ in hashes
    )


def _leftovers(name: str, there: There, needed: set[tuple[str, str]], *, keep_service: bool) -> Iterable[Deletion]:
    """What no pod needs any more; the Service stays through suspension, so that its address does."""
    hashes = {pod.labels.get(labels.CONFIG, "") for pod in there.pods.values()}
    configs = {config_map_name(name, hash_) for hash_ in hashes if hash_}
    for (resource, child), record in sorted(there.children.items(), key=lambda item: (item[0][0].kind, item[0][1])):
        if record.deleting or (resource.kind, child) in needed:
            continue
        if resource is CONFIG_MAPS and child not in configs:
            yield Deletion(resource, child, "no pod reads it")
        elif resource is TEMPLATES and child not in there.pods:
            yield Deletion(resource, child, "its pod is gone")
        elif resource in (BUDGETS, POLICIES) or (resource is SERVICES and not keep_service):
            yield Deletion(resource, child, "the ensemble has no use for it")
