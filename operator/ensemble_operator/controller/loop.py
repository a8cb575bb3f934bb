"""The one loop: gather changes, look at everything, decide, act, report. One cycle at a time, never two.

Every cycle computes everything anew from what is seen; only what would come out the same is not computed again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.controller.allowance import Allowance
from ensemble_operator.controller.backoff import Backoff
from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.changes import Changes, There, changes
from ensemble_operator.controller.concurrency import gathered, together
from ensemble_operator.controller.decision import OVERVIEW, Decision, Overview
from ensemble_operator.controller.edition_record import EditionRecord
from ensemble_operator.controller.kube import Kube, KubeError, answered
from ensemble_operator.controller.metrics import Metrics
from ensemble_operator.controller.profiling import Place, Profiling, Waiting, carry_out
from ensemble_operator.controller.records import COMPONENT, ChildRecord, EnsembleRecord, OwnPod
from ensemble_operator.controller.reporting import Reporter
from ensemble_operator.controller.resources import (
    BUDGETS,
    CLAIMS,
    CONFIG_MAPS,
    ENSEMBLES,
    NODES,
    PODS,
    POLICIES,
    PROFILES,
    REVISIONS,
    SERVICES,
    SLICES,
    TEMPLATES,
    Resource,
)
from ensemble_operator.controller.rollout import within
from ensemble_operator.controller.settings import Settings
from ensemble_operator.controller.status import Observed, View
from ensemble_operator.controller.worker import DecisionError, Worker
from ensemble_operator.controller.world import GIVEN_UP
from ensemble_operator.controller.writing import Writer
from ensemble_operator.inventory.slices import DRIVERS
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.settings import PodSettings

_AT_ONCE = 16
"""Ensembles that are acted on side by side."""
_ACTING_SECONDS = 2.0
"""Time to act in one cycle; what is begun is finished."""
_OWNED = (CONFIG_MAPS, SERVICES, BUDGETS, POLICIES, TEMPLATES)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the actions of an ensemble are computed from; the same scene needs no second look."""

    record: EnsembleRecord
    decision: Decision
    there: There
    observed: Observed


class Loop:
    """Reconciles all ensembles. `poke` it when something has changed; `run` is the loop itself."""

    def __init__(
        self,
        settings: Settings,
        kube: Kube,
        cache: Cache,
        worker: Worker,
        metrics: Metrics,
        sources: Mapping[Resource, str],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Put the parts together.

        Args:
            settings: The operator's.
            kube: The way to the API server.
            cache: What is seen; watches fill it.
            worker: Decides.
            metrics: Told of what happens.
            sources: The kinds to look at, each with the selector of its labels.
            beat: Called whenever the loop turns.
        """
        self._settings, self._kube, self._cache = settings, kube, cache
        self._worker, self._metrics, self._sources, self._beat = worker, metrics, sources, beat
        self._pod_settings = PodSettings(
            image_onnx=settings.runtime_image_onnx,
            image_full=settings.runtime_image_full,
            pull_policy=settings.image_pull_policy,
            model_cache_claim=settings.model_cache_claim or None,
            model_cache_mib=settings.model_cache_mib,
            drivers={**DRIVERS, **settings.dra_drivers},
        )
        self._dirty = asyncio.Event()
        self._first = True
        self._done: dict[str, Scene] = {}
        self._acted: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._writer = Writer(kube, cache, self.poke)
        self._reporter = Reporter(kube, cache)
        self._parsed: dict[str, tuple[str, InferenceEnsemble]] = {}
        self._backoff = Backoff()
        self._profiling = Profiling()
        self._observed: dict[str, Observed] = {}

    def poke(self) -> None:
        """Something has changed."""
        self._dirty.set()

    def saw(self, uid: str, observed: Observed) -> None:
        """What the pods of an ensemble report of themselves."""
        if self._observed.get(uid) != observed:
            self._observed[uid] = observed
            self.poke()

    async def run(self) -> None:
        """Turn until cancelled."""
        await answered(self.list_all)
        listed = time.monotonic()
        while True:
            self._beat()
            try:
                await self.cycle()
            except DecisionError as error:
                self._metrics.errors.labels("decision").inc()
                _log.error("no decision: %s", error)
                self._backoff.failed("decision", str(error), time.monotonic())
            except KubeError as error:
                self._metrics.errors.labels("api").inc()
                _log.warning("a cycle is broken off: %s", error)
                self._backoff.failed("cycle", str(error), time.monotonic())
            self._beat()
            await self._rest(listed + self._settings.resync_seconds)
            if time.monotonic() >= listed + self._settings.resync_seconds:
                listed = time.monotonic()
                try:
                    await self.list_all()
                except KubeError as error:  # the watches still tell what happens; the next resync is near
                    self._metrics.errors.labels("resync").inc()
                    _log.warning("cannot list everything anew: %s", error)

    async def _rest(self, resync: float) -> None:
        """Sleep until something changes, a pause of something that failed is over, or all is to be listed again."""
        while True:
            until = min(resync, self._backoff.next_due(), self._profiling.backoff.next_due(), self._next_late())
            patience = max(0.0, min(until - time.monotonic(), 5.0))
            try:
                await asyncio.wait_for(self._dirty.wait(), patience)
            except TimeoutError:
                self._beat()
                if time.monotonic() < until:
                    continue
            break
        if self._dirty.is_set():
            await asyncio.sleep(self._settings.debounce_seconds)
        self._dirty.clear()

    def _next_late(self) -> float:
        """When the next pod is late, should it not become ready; infinity where none is waited for."""
        now = time.monotonic()
        return min((due for due in self._due.values() if due > now), default=math.inf)

    async def list_all(self) -> None:
        """List every source once; nothing is planned before that has been done, whatever watches told.

        Raises:
            KubeError: A source cannot be listed.
        """
        for resource, selector in self._sources.items():
            found = await self._kube.list(resource, namespace=self._settings.namespace, selector=selector)
            if self._cache.replace(resource, found.items, found.version):
                self.poke()
            self._beat()

    async def cycle(self) -> None:
        """Look at everything once, and act on it.

        Raises:
            DecisionError: Nothing could be decided.
        """
        started = time.monotonic()
        self._backoff.look(started)
        self._profiling.backoff.look(started)
        state = self._state(started)
        with self._metrics.planning.time():
            decisions = await self._worker.decide(state, self._settings.plan_seconds)
        self._beat()
        scenes = self._scenes(decisions, state)
        allowance = Allowance(0 if self._first else self._settings.max_pod_changes)
        waiting = [scene for scene in scenes if self._calls(scene)]
        waiting.sort(key=lambda scene: self._acted.get(scene.record.uid, 0.0))
        until = time.monotonic() + _ACTING_SECONDS
        await gathered(_AT_ONCE, (self._guarded(scene, allowance, until) for scene in waiting))
        try:
            await self._measure(scenes, allowance)
        except Exception as error:  # it costs no ensemble that serves anything
            self._metrics.errors.labels("unexpected").inc()
            self._backoff.failed("measuring", repr(error), time.monotonic())
            _log.exception("an unexpected failure")
        if self._first or allowance.short:
            self.poke()
        self._first = False
        self._forget()
        overview: Overview = decisions[OVERVIEW]
        self._metrics.show_devices(overview.devices)
        self._metrics.show_ensembles(self._reporter.conditions())
        self._metrics.cycles.observe(time.monotonic() - started)
        self._metrics.last_cycle.set_to_current_time()

    def _state(self, now: float) -> dict[Any, Any]:
        """All that decisions are made from."""
        state: dict[Any, Any] = {GIVEN_UP: self._profiling.given_up(now)}
        for resource in (ENSEMBLES, PROFILES, NODES, PODS, SLICES, CLAIMS, REVISIONS):
            for (namespace, name), record in self._cache.all(resource).items():
                state[resource.plural, namespace, name] = record
        place = (self._settings.static_namespace or self._settings.namespace, self._settings.static_inventory)
        if self._settings.static_inventory:
            seen = self._cache.get(CONFIG_MAPS, *place)
            record = seen.record if seen is not None else None
            state[CONFIG_MAPS.plural, *place] = record.data if isinstance(record, ChildRecord) else {}
        return state

    def _scenes(self, decisions: Mapping[Any, Any], state: Mapping[Any, Any]) -> list[Scene]:
        """One scene an ensemble, in the order of their names; those that were edited meanwhile wait for a decision."""
        pods: dict[str, dict[str, OwnPod]] = defaultdict(dict)
        for (_, name), record in self._cache.all(PODS).items():
            if record.own is not None and record.own.labels.get(COMPONENT) == labels.SERVING and record.own.owner:
                pods[record.own.owner][name] = record.own
        children: dict[str, dict[tuple[Resource, str], ChildRecord]] = defaultdict(dict)
        edited: dict[str, set[tuple[Resource, str]]] = defaultdict(set)
        for resource in _OWNED:
            for (namespace, name), child in self._cache.all(resource).items():
                if child.owner is None or child.component != labels.SERVING:
                    continue
                children[child.owner][resource, name] = child
                if self._writer.edited((resource, namespace, name), child):
                    edited[child.owner].add((resource, name))
        editions: dict[str, list[EditionRecord]] = defaultdict(list)
        for _, edition in sorted(self._cache.all(REVISIONS).items()):
            editions[edition.owner].append(edition)
        scenes = []
        for key, record in sorted(self._cache.all(ENSEMBLES).items()):
            decision = decisions.get(key)
            fresh = record == state.get((ENSEMBLES.plural, *key))
            if decision is not None and fresh and not record.deleting:
                uid = record.uid
                own = pods.get(uid, {}), children.get(uid, {}), frozenset(edited.get(uid, ()))
                there = There(*own, tuple(editions.get(uid, ())))
                scenes.append(Scene(record, decision, there, self._observed.get(uid, Observed())))
        return scenes

    def _calls(self, scene: Scene) -> bool:
        """Whether there may be something to do: it is not as it was left, or time is over for one of its pods.

        While it rests after a failure it is left alone.
        """
        uid, now = scene.record.uid, time.monotonic()
        called = self._done.get(uid) != scene or self._due.get(uid, math.inf) <= now
        return called and not self._backoff.waits(uid, now)

    async def _guarded(self, scene: Scene, allowance: Allowance, until: float) -> None:
        """Act on one ensemble; whatever is wrong with it, the others do not suffer.

        Past `until` it is left to the next cycle, which decides anew: a thousand ensembles that come at once do not
        keep one that comes after them waiting until all are made.
        """
        if time.monotonic() > until:
            self.poke()
            return
        self._acted[scene.record.uid] = time.monotonic()
        try:
            await self._act(scene, allowance)
        except Exception as error:
            self._metrics.errors.labels("unexpected").inc()
            self._backoff.failed(scene.record.uid, repr(error), time.monotonic())
            _log.exception("an unexpected failure", extra=_about(scene.record, scene.decision))

    async def _act(self, scene: Scene, allowance: Allowance) -> None:
        """Bring one ensemble a step further, and write what is to be said about it."""
        record, uid = scene.record, scene.record.uid
        ensemble = self._ensemble(record, scene.decision) if scene.decision.fault is None else None
        now = Changes()
        if ensemble is not None:
            moment = datetime.now(UTC)
            now = changes(record, ensemble, scene.decision, scene.there, self._pod_settings, moment)
        self._due[uid] = time.monotonic() + now.progress.due if now.progress.due is not None else math.inf
        problem: str | None = None
        complete = written = True
        try:
            complete = await self._carry_out(scene, now, allowance)
        except KubeError as error:
            problem = str(error)
            self._metrics.errors.labels("ensemble").inc()
            self._backoff.failed(uid, problem, time.monotonic())
            _log.warning("cannot carry out: %s", problem, extra=_about(record, scene.decision))
        try:
            await self._reporter.report(
                View(record, ensemble, scene.decision, scene.there, now, problem, scene.observed)
            )
        except KubeError as error:
            self._metrics.errors.labels("status").inc()
            self._backoff.failed(uid, str(error), time.monotonic())
            _log.warning("cannot write the status: %s", error, extra=_about(record, scene.decision))
            written = False
        self._done.pop(uid, None)
        if problem is None and written:
            self._backoff.worked(uid)
            if complete:
                self._done[uid] = scene

    async def _carry_out(self, scene: Scene, now: Changes, allowance: Allowance) -> bool:
        """Apply and delete; whether all of it could be done in this cycle."""
        record, complete = scene.record, True
        await together(self._writer.apply(body) for body in now.apply if body["kind"] != "Pod")
        pods = {body["metadata"]["name"]: body for body in now.apply if body["kind"] == "Pod"}
        for name in [name for name in pods if self._backoff.waits(("pod", record.uid, name), time.monotonic())]:
            del pods[name]
            complete = False
        for name in pods:
            _log.info("creates pod %s", name, extra=_about(record, scene.decision))
        await together(map(self._writer.apply, pods.values()))
        if self._first:
            return complete and not (now.remove or now.delete)
        granted = allowance.take(len(now.remove))
        for removal in within(granted, now.remove):
            pod = removal.pod
            if pod.ended:
                self._backoff.failed(("pod", record.uid, pod.name), "ended", time.monotonic())
            _log.info("deletes pod %s: %s", pod.name, removal.reason, extra=_about(record, scene.decision))
            await self._writer.delete(PODS, record.namespace, pod.name, pod.uid)
        for deletion in now.delete:
            seen = self._cache.get(deletion.resource, record.namespace, deletion.name)
            if seen is not None:
                await self._writer.delete(deletion.resource, record.namespace, deletion.name, seen.uid)
        return complete and granted == len(now.remove)

    async def _measure(self, scenes: list[Scene], allowance: Allowance) -> None:
        """Start and finish what measures missing profiles."""
        waiting = [
            Waiting(scene.record, self._ensemble(scene.record, scene.decision), scene.decision)
            for scene in scenes
            if scene.decision.missing
        ]
        actions = self._profiling.actions(waiting, self._cache, self._pod_settings, time.monotonic())
        await carry_out(actions, self._writer, self._unmeasured, self._rests, None if self._first else allowance)

    def _rests(self, place: Place) -> bool:
        """Whether something of a measurement was refused, and its pause is not over."""
        return self._backoff.waits(("profiling", *place), time.monotonic())

    def _unmeasured(self, place: Place, error: KubeError, *, pod: bool) -> None:
        """Something of a measurement was refused; it is tried again after a pause, which for a pod itself is long."""
        self._metrics.errors.labels("profiling").inc()
        _log.warning("cannot measure: %s", error, extra={"pod": "/".join(place)})
        if pod:
            self._profiling.refused(place, str(error), time.monotonic())
        else:
            self._backoff.failed(("profiling", *place), str(error), time.monotonic())

    def _ensemble(self, record: EnsembleRecord, decision: Decision) -> InferenceEnsemble:
        """The ensemble as it is carried out: as it is written, or as it was before a change that was given up."""
        document = decision.carried or record.document
        known = self._parsed.get(record.uid)
        if known is None or known[0] != document:
            ensemble = InferenceEnsemble.model_validate(replace(record, document=document).manifest())
            known = self._parsed[record.uid] = (document, ensemble)
        return known[1]

    def _forget(self) -> None:
        """Let go of what belonged to ensembles that are gone."""
        alive = {record.uid for record in self._cache.all(ENSEMBLES).values()}
        memories: tuple[dict[str, Any], ...] = self._done, self._acted, self._due, self._parsed, self._observed
        for memory in memories:
            for uid in memory.keys() - alive:
                del memory[uid]
        self._reporter.forget_all_but(alive)
        self._writer.forget_all_but({(r, *key) for r in _OWNED for key in self._cache.all(r)})


def _about(record: EnsembleRecord, decision: Decision) -> dict[str, str]:
    """What every line of the log about an ensemble says."""
    hashes = sorted({plan.digest for plan in decision.plans.values()})
    return {"ensemble": f"{record.namespace}/{record.name}", "plan": ",".join(hashes)}
