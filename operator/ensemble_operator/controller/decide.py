"""All decisions of a cycle: who gets which devices, with which plan. Runs in the worker process; no I/O.

Everything is computed anew from what is seen. What was granted in the round before is remembered only to bridge the
moment between a decision and the pods that come of it; an operator that starts adopts what its pods say of themselves.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.api.rollout import Mode, Strategy
from ensemble_operator.controller.adopted import Adopted, settled
from ensemble_operator.controller.allotment import Grant
from ensemble_operator.controller.decision import OVERVIEW, Decision, Overview, Retreat
from ensemble_operator.controller.handing import hand_out
from ensemble_operator.controller.history import given_up, last_good
from ensemble_operator.controller.ledger import Ledger
from ensemble_operator.controller.measuring import Bench, Pair, free_pairs, missing_profiles
from ensemble_operator.controller.memory import Memory
from ensemble_operator.controller.offers import Offers
from ensemble_operator.controller.placing import Copy, Request
from ensemble_operator.controller.records import EnsembleRecord
from ensemble_operator.controller.shortfall import nothing_to_use
from ensemble_operator.controller.wish import Wish, request_of, terms_of
from ensemble_operator.controller.world import Key, State, World
from ensemble_operator.inventory.slices import DriverWords
from ensemble_operator.manifests.edition import edition_hash, restored
from ensemble_operator.manifests.revision import revision
from ensemble_operator.planner.problem import Problem
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError

_log = logging.getLogger(__name__)


class Decider:
    """Decides, cycle after cycle."""

    def __init__(self, gpu_reserve_bytes: int, dra_drivers: Mapping[str, DriverWords]) -> None:
        """Nothing is remembered yet.

        Args:
            gpu_reserve_bytes: Memory of each GPU that no member gets.
            dra_drivers: Drivers that publish GPUs, besides those that are known anyway.
        """
        self._memory = Memory(gpu_reserve_bytes, dra_drivers)

    def __call__(self, state: State, until: float) -> dict[Any, Any]:
        """The decisions for all ensembles.

        Args:
            state: Records by (kind, namespace, name), and what was told of profiling.
            until: When planning has to come to an end, of the monotonic clock.
        """
        self._memory.plan_until(until)
        return _Round(self._memory, World(state)).run()


def make_decider(gpu_reserve_bytes: int, dra_drivers: Mapping[str, DriverWords]) -> Decider:
    """What the worker process starts with."""
    return Decider(gpu_reserve_bytes, dra_drivers)


@dataclass(frozen=True, slots=True)
class Edition:
    """A spec that served before."""

    document: str
    """As canonical JSON."""
    spec: EnsembleSpec
    digests: Mapping[str, str]


class _Round:
    """One round of decisions."""

    def __init__(self, memory: Memory, world: World) -> None:
        self._memory, self._world = memory, world
        self._names = {"/".join(key) for key, record in world.ensembles.items() if not record.deleting}
        self._inventory = memory.survey(world)
        self._everything = Ledger(self._inventory)
        self._decisions: dict[Any, Any] = {}
        pods = {key: pod.own for key, pod in world.pods.items() if pod.own is not None}
        self._pods: dict[Key, Adopted] = {
            key: adopted for key, pod in pods.items() if (adopted := memory.adopted(pod.uid, pod)) is not None
        }
        self._of_owner: dict[str | None, list[Adopted]] = defaultdict(list)
        for _, pod in sorted(self._pods.items()):
            self._of_owner[pod.owner].append(pod)
        self._held_devices = [device for _, pod in sorted(self._pods.items()) for device in pod.devices]
        self._offers = Offers(self._inventory, self._everything, self._held_devices)
        memory.forget_all_but({r.uid for r in world.ensembles.values()}, {pod.uid for pod in pods.values()})

    def run(self) -> dict[Any, Any]:
        requests: dict[Key, tuple[Wish, Request]] = {}
        for key, record in sorted(self._world.ensembles.items()):
            if record.deleting:
                continue
            try:
                decision, asked = self._considered(key, record)
            except Exception as error:  # whatever is wrong with one ensemble, the others do not suffer
                _log.exception("an unexpected failure", extra={"ensemble": "/".join(key)})
                decision, asked = Decision(frozen=True, waiting=f"an unexpected failure: {error!r}"), None
            self._decisions[key] = decision
            if asked is not None:
                requests[key] = asked
        handed = hand_out(requests, self._inventory, self._memory.solve, self._held_devices)
        for key, (wish, request) in requests.items():
            grant = handed.allotment.grants.get(request.key)
            self._decided(wish, request, grant, frozen=key in handed.frozen)
        self._find_devices_to_measure_on(handed.allotment.left)
        self._decisions[OVERVIEW] = self._overview()
        return self._decisions

    def _considered(self, key: Key, record: EnsembleRecord) -> tuple[Decision, tuple[Wish, Request] | None]:
        """What can be said before devices are handed out, and what is asked for then."""
        spec = self._memory.spec_of(record)
        if isinstance(spec, str):
            return Decision(fault=spec, frozen=True), None
        if spec.suspend:
            self._memory.release(record.uid)
            return Decision(suspended=True), None
        if self._world.fault is not None and not spec.devices.simulated:
            # Nobody is to lose devices by a slip of the pen.
            return Decision(frozen=True, waiting=self._world.fault), None
        table, by_uri = self._memory.profiles_of(key[0], self._world.profiles.get(key[0], ()))
        found = ((m.name, m.model.sha256 or by_uri.get(m.model.uri)) for m in spec.members)
        digests: Mapping[str, str] = {name: known for name, known in found if known is not None}
        dry = spec.mode is Mode.PLAN_ONLY
        retreat, before = self._instead(record, spec, digests) if not dry else (None, None)
        if before is not None:
            spec, digests = before.spec, before.digests
            record = replace(record, document=before.document)
        simulated = bool(spec.devices.simulated)
        terms, offer = terms_of(spec), self._offers.of(spec)
        unmeasured, pods = self._world.given_up.get(key[0], {}), self._world.own_pods.get(key[0], {})
        missing = missing_profiles(spec, digests, offer.kinds, table, unmeasured, pods, self._pairs(record, spec))
        so_far = Decision(dry=dry, digests=digests, missing=missing, supply=offer.supply, retreat=retreat)
        so_far = replace(
            so_far, carried=before.document if before else None, away=self._away(self._of_owner[record.uid])
        )
        unknown = [m.name for m in spec.members if m.name not in digests]
        if unknown:
            return replace(so_far, frozen=True, waiting=f"the digest of {', '.join(unknown)} is not known yet"), None
        own, edition = self._memory.hashes(record, spec, digests)
        so_far = replace(so_far, revision=own)
        runs = any(pod.serving for pod in self._of_owner[record.uid])
        if any(m.given_up is None for m in missing) and not simulated and not runs:
            return replace(so_far, frozen=True, waiting="waits for profiles"), None
        held, old = self._held(record, own, edition, back=retreat is not None)
        changing = frozenset(copy for copy in old if copy < spec.replicas)  # the others end, and block nothing
        stays = settled(self._of_owner[record.uid], own)
        wish = Wish(key, record, spec, digests, edition, terms, held, changing, stays)
        there = (*(d for copy in held.values() for d in copy.devices), *offer.kinds)
        kinds = tuple({(d.node, d.name): d for d in there}.values())  # of one name as the inventory has it now
        if not kinds:
            return replace(so_far, waiting=nothing_to_use(terms, self._everything)), None
        try:
            problem = self._memory.problem_of(wish, kinds, table)
        except EnsembleError as error:
            return replace(so_far, frozen=True, waiting=str(error)), None
        if simulated:
            return self._simulated(so_far, wish, problem), None
        return so_far, (wish, request_of(wish, problem))

    def _instead(
        self, record: EnsembleRecord, spec: EnsembleSpec, digests: Mapping[str, str]
    ) -> tuple[Retreat | None, Edition | None]:
        """What served before, where that is to serve on: what is asked for was given up, or waits for somebody.

        Strategy OnDelete waits until somebody deletes pods. A copy that is lost with its node is deleted by nobody, and
        comes back as it was.
        """
        editions = self._world.editions.get(record.uid, ())
        waits = spec.rollout.strategy is Strategy.ON_DELETE and len(digests) == len(spec.members)
        lost = {p.revision for p in self._of_owner[record.uid] if p.serving and self._away([p])} if waits else set()
        if not lost and not any(e.failure for e in editions):
            return None, None
        asked = edition_hash(spec, digests)
        failure, good = given_up(editions, asked, spec), last_good(editions, asked)
        if good is None:
            return None, None
        document = restored(json.loads(good.content), spec)
        before = self._memory.restored(record, document)
        if isinstance(before, str):  # written by another operator
            return None, None
        edition = Edition(document, before, good.digests)
        if failure is not None:
            return Retreat(asked, failure.message), edition
        # Once pods of what is asked for are there, somebody has let it in.
        return None, edition if lost == {revision(before, good.digests)} != {revision(spec, digests)} else None

    def _away(self, pods: Iterable[Adopted]) -> frozenset[str]:
        """Of the nodes that pods hold devices on, those that are gone or not heard of."""
        nodes = {d.node for pod in pods for d in pod.devices if d.kind is not DeviceKind.SIMULATED}
        there = self._everything.nodes
        return frozenset(name for name in nodes if name not in there or not there[name].ready)

    def _held(
        self, record: EnsembleRecord, revision: str, edition: str, *, back: bool
    ) -> tuple[dict[int, Copy], frozenset[int]]:
        """What each copy holds, and which copies hold it under an older revision.

        Args:
            record: The ensemble.
            revision: What its pods are to be.
            edition: What it is planned by.
            back: Whether it goes back to what served before: then what is ready counts for more than what is new.
        """
        granted = self._memory.granted(record.uid)
        if granted is not None and granted[0] == edition:
            return granted[1], frozenset()
        sets: dict[int, dict[tuple[str, str], list[Adopted]]] = defaultdict(lambda: defaultdict(list))
        for pod in self._of_owner[record.uid]:
            if pod.serving:
                sets[pod.copy][pod.revision, pod.plan].append(pod)
        held, changing = {}, set()
        for copy, of_copy in sets.items():
            of, pods = max(
                of_copy.items(),
                key=lambda one: (
                    one[0][0] == revision,
                    back and all(pod.ready for pod in one[1]),
                    max(pod.created for pod in one[1]),
                    one[0],
                ),
            )
            cells = {(d.node, d.name, member): size for pod in pods for d, member, size in pod.running}
            held[copy] = Copy(tuple(d for pod in pods for d in pod.devices), cells)
            if of[0] != revision:
                changing.add(copy)
        return held, frozenset(changing)

    def _simulated(self, so_far: Decision, wish: Wish, problem: Problem) -> Decision:
        """Devices that nobody has are nobody's loss: each copy has all of them."""
        before = wish.held.get(0, Copy((), {}))
        try:
            plan = self._memory.solve(replace(problem, running=dict(before.running)))
        except EnsembleError as error:
            return replace(so_far, waiting=str(error))
        plans = dict.fromkeys(range(wish.spec.replicas), plan)
        running = {(device.node, device.name, member): size for device, member, size in plan.cells}
        self._memory.grant(wish.record.uid, wish.edition, {i: Copy((), running) for i in plans})
        return replace(so_far, plans=plans)

    def _decided(self, wish: Wish, request: Request, grant: Grant | None, *, frozen: bool) -> None:
        before = self._decisions[wish.key]
        if grant is None or frozen:
            blocked = "nothing can take the place of what runs; it goes on as it is"
            self._decisions[wish.key] = replace(before, frozen=True, waiting=blocked)
            return
        self._decisions[wish.key] = replace(
            before,
            plans=grant.plans,
            waiting=grant.waiting,
            preempted_by=self._memory.taker(wish.record, grant, self._names),
            stranded=frozenset(grant.stranded),
        )
        if not request.dry:
            copies = dict(grant.stranded)
            for copy, plan in grant.plans.items():
                cells = {(d.node, d.name, member): size for d, member, size in plan.cells}
                copies[copy] = Copy(plan.devices, cells)
            self._memory.grant(wish.record.uid, wish.edition, copies)

    def _find_devices_to_measure_on(self, left: Ledger) -> None:
        """Give each missing profile a device, or none where none is free."""
        bench = Bench(left)
        for key, decision in self._decisions.items():
            spec = self._memory.spec_of(self._world.ensembles[key])
            if not decision.missing or isinstance(spec, str) or spec.devices.simulated:
                continue
            kinds, terms = self._offers.of(spec).kinds, terms_of(spec)
            found = []
            for one in decision.missing:
                device = bench.device_for(key[0], one.want, kinds, terms)
                first, second = (device, None) if device else bench.pair_for(key[0], one.want, terms) or (None, None)
                found.append(replace(one, device=first, second=second))
            self._decisions[key] = replace(decision, missing=tuple(found))

    def _pairs(self, record: EnsembleRecord, spec: EnsembleSpec) -> dict[str, Pair]:
        """The pairs of devices that a member could be measured on now, or is."""
        if spec.devices.simulated or not any(member.partition for member in spec.members):
            return {}
        left = self._everything.clone()
        own = {(d.node, d.name) for pod in self._of_owner[record.uid] if not pod.serving for d in pod.devices}
        left.claim(d for d in self._held_devices if (d.node, d.name) not in own)
        return free_pairs(left, terms_of(spec))

    def _overview(self) -> Overview:
        used = {(d.node, d.name) for d in self._held_devices}
        tally = Counter(
            (d.type, "used" if (d.node, d.name) in used else "free") for n in self._inventory.nodes for d in n.devices
        )
        notes = [f"{node.name}: {note}" for node in self._inventory.nodes for note in node.notes]
        return Overview(dict(tally), (*([self._world.fault] if self._world.fault else []), *notes))
