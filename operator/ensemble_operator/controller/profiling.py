"""Missing profiles: a short-lived pod measures, its termination message tells, a ModelProfile keeps it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.controller.allowance import Allowance
from ensemble_operator.controller.backoff import Backoff
from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.decision import Decision, Missing
from ensemble_operator.controller.kube import KubeError
from ensemble_operator.controller.measuring import pod_of
from ensemble_operator.controller.records import COMPONENT, URI, ChildRecord, EnsembleRecord, OwnPod
from ensemble_operator.controller.resources import CONFIG_MAPS, NODES, PODS, PROFILES, TEMPLATES, Resource
from ensemble_operator.controller.writing import Writer
from ensemble_operator.inventory.node_record import NodeRecord
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.profiling import measured, profiling_objects
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.planner.pairs import is_pair
from ensemble_operator.profiles.profile import Profile
from ensemble_operator.profiles.table import key_of

_log = logging.getLogger(__name__)

_MIB = 2**20
_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 3600.0

Object = dict[str, Any]
Place = tuple[str, str]
"""Namespace and name of a profiling pod."""


class Refused(Protocol):
    """Told what the API server refused of a measurement."""

    def __call__(self, place: Place, error: KubeError, *, pod: bool) -> None:
        """`pod`: whether its pod, or what that needs, could not be made."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An ensemble that waits for profiles."""

    record: EnsembleRecord
    ensemble: InferenceEnsemble
    decision: Decision


@dataclass(frozen=True, slots=True)
class Removed:
    """An object to delete."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    lost: bool = False
    """A pod whose node is away: nobody there would confirm its end, so it is not waited for."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do now: first keep, then apply, then delete."""

    keep: tuple[tuple[Place, Object], ...]
    """ModelProfiles, each with the pod that measured it."""
    apply: tuple[Object, ...]
    delete: tuple[Removed, ...]


class Profiling:
    """Remembers which measurements failed; all else is seen anew in each cycle."""

    def __init__(self) -> None:
        self.backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    def given_up(self, now: float) -> dict[Place, str]:
        """What is not tried now, and what its last attempt said."""
        return {place: told for place, told in self.backoff.resting(now).items() if isinstance(place, tuple)}

    def refused(self, place: Place, message: str, now: float) -> None:
        """A pod could not be made."""
        self.backoff.failed(place, message, now)

    def actions(self, waiting: Iterable[Waiting], cache: Cache, settings: PodSettings, now: float) -> Actions:
        """What to apply and to delete now.

        Args:
            waiting: The ensembles that wait for profiles, in a fixed order.
            cache: What is there.
            settings: The installation's part of pods.
            now: Seconds of a monotonic clock.
        """
        there = {
            place: record.own
            for place, record in cache.all(PODS).items()
            if record.own is not None and record.own.labels.get(COMPONENT) == labels.PROFILER
        }
        wanted, apply = self._wanted(waiting, there, settings)
        nodes = {name: node for (_, name), node in cache.all(NODES).items()}
        keep: list[tuple[Place, Object]] = []
        delete: list[Removed] = []
        for place, pod in sorted(there.items()):
            if _lost(pod, nodes):
                delete.append(Removed(PODS, *place, pod.uid, lost=True))
                # Made for a device of that node, and never changed: whoever measures next makes another.
                claim = cache.get(TEMPLATES, *place)
                delete += [Removed(TEMPLATES, *place, claim.uid)] if claim is not None else []
                continue
            if pod.deleting:
                continue
            if pod.phase in ("Succeeded", "Failed"):
                keep += [(place, body) for body in self._results(place, pod, wanted.get(place), now)]
            elif place in wanted:
                continue
            delete.append(Removed(PODS, *place, pod.uid))
        for resource in (CONFIG_MAPS, TEMPLATES):
            for place, child in sorted(cache.all(resource).items()):
                if _is_profilers(child) and place not in there and place not in wanted:
                    seen = cache.get(resource, *place)
                    delete += [Removed(resource, *place, seen.uid)] if seen is not None else []
        return Actions(tuple(keep), tuple(apply), tuple(delete))

    def _wanted(
        self, waiting: Iterable[Waiting], there: Mapping[Place, OwnPod], settings: PodSettings
    ) -> tuple[dict[Place, tuple[Waiting, Missing]], list[Object]]:
        """The pods that are wanted, each with an ensemble and what of it is missing; and what makes those that lack."""
        wanted: dict[Place, tuple[Waiting, Missing]] = {}
        apply: list[Object] = []
        for one in waiting:
            for missing in one.decision.missing:
                place = (one.record.namespace, pod_of(missing.want))
                if place in wanted or missing.given_up is not None:
                    continue
                if place in there:
                    wanted[place] = (one, missing)
                elif missing.device is not None:
                    wanted[place] = (one, missing)
                    member = next(m for m in one.ensemble.spec.members if m.name == missing.member)
                    digest = one.decision.digests.get(missing.member)
                    apply += profiling_objects(
                        one.ensemble,
                        one.record.uid,
                        member,
                        missing.device,
                        settings,
                        second=missing.second,
                        digest=digest,
                    )
        return wanted, apply

    def _results(self, place: Place, pod: OwnPod, wanted: tuple[Waiting, Missing] | None, now: float) -> list[Object]:
        """The ModelProfiles that a pod which has ended leaves; where it leaves none, that is remembered."""
        message = pod.ended.message if pod.ended is not None else pod.trouble or "it ended without a word"
        try:
            profiles = measured(message)
        except ValueError:
            profiles = ()
        if not profiles:
            self.backoff.failed(place, message, now)
            return []
        self.backoff.worked(place)
        uri = partition = None
        if wanted is not None:
            one, missing = wanted
            member = next(m for m in one.ensemble.spec.members if m.name == missing.member)
            uri = None if member.model.sha256 else member.model.uri
            partition = missing.want[-1]
        # Of a pair only who waits for it knows what the split was to be best at.
        kept = [replace(profile, partition=partition) for profile in profiles]
        return [model_profile(place[0], p, uri) for p in kept if p.partition or not is_pair(p.device_type)]


def model_profile(namespace: str, profile: Profile, uri: str | None) -> Object:
    """The object that keeps a profile. Nobody owns it, so that it outlives the ensemble that needed it first.

    Args:
        namespace: Where.
        profile: What was measured.
        uri: Where the file came from, if that is to tell members without a digest which file they have.
    """
    points = [
        {"batchSize": p.batch_size, "seconds": p.seconds, "memoryMib": p.memory_bytes / _MIB}
        | ({"secondMemoryMib": p.second_bytes / _MIB} if p.second_bytes else {})
        for p in profile.points
    ]
    split: Object = {}
    if profile.partition is not None:
        split["partition"] = profile.partition.model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata: Object = {
        "name": pod_of(key_of(profile)),
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": labels.MANAGER, "app.kubernetes.io/part-of": "ensembles"},
    }
    return {
        "apiVersion": PROFILES.api_version,
        "kind": PROFILES.kind,
        "metadata": metadata | ({"annotations": {URI: uri}} if uri else {}),
        "spec": {
            "model": {"sha256": profile.digest},
            "deviceType": profile.device_type,
            "precision": profile.precision,
            "points": points,
        }
        | split,
    }


def _lost(pod: OwnPod, nodes: Mapping[str, NodeRecord]) -> bool:
    """Whether a pod will not tell what it measures: its node is away, or takes nobody while it waits to be let in.

    Args:
        pod: A profiling pod.
        nodes: Those of the cluster; none where they may not be read, and then nobody knows.
    """
    if not nodes or pod.phase in ("Succeeded", "Failed"):
        return False
    try:
        home = pod.node or next((device.node for device in labels.held(pod.annotations)), "")
    except ValueError:
        return False
    node = nodes.get(home)
    return node is None or not node.ready or (node.cordoned and not pod.node)


def _is_profilers(child: ChildRecord) -> bool:
    return child.component == labels.PROFILER and not child.deleting


async def carry_out(
    actions: Actions,
    writer: Writer,
    refused: Refused,
    rests: Callable[[Place], bool],
    allowance: Allowance | None = None,
) -> None:
    """Do it; whatever is refused, the rest is done.

    Args:
        actions: What to do.
        writer: Writes.
        refused: Told of each refusal.
        rests: Whether something of a measurement was refused, and is not to be tried again yet.
        allowance: How much may be deleted; None: nothing.
    """
    unkept: set[Place] = set()
    for place, body in actions.keep:
        if rests(place):
            continue
        try:
            await writer.apply(body)
        except KubeError as error:
            unkept.add(place)  # its pod keeps what it has measured until that is written
            refused(place, error, pod=False)
    for body in actions.apply:
        try:
            await writer.apply(body)
        except KubeError as error:
            refused((body["metadata"]["namespace"], body["metadata"]["name"]), error, pod=True)
    if allowance is None:
        return
    places = {(removed.namespace, removed.name) for removed in actions.delete}
    held = unkept | {place for place in places if rests(place)}
    wanted = [removed for removed in actions.delete if (removed.namespace, removed.name) not in held]
    for removed in wanted[: allowance.take(len(wanted))]:
        if removed.lost:
            _log.warning("gives up pod %s/%s: its node is away", removed.namespace, removed.name)
        at = removed.resource, removed.namespace, removed.name, removed.uid
        try:
            await writer.delete(*at, at_once=removed.lost)
        except KubeError as error:
            refused((removed.namespace, removed.name), error, pod=False)
