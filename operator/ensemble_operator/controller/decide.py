"""All decisions of a cycle: who gets which devices, with which plan. Runs in the worker process; no I/O.

Everything is computed anew from what is seen. What was granted in the round before is remembered only to bridge the
moment between a decision and the pods that come of it; an operator that starts adopts what its pods say of themselves.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ensemble_operator.api.ensemble import EnsembleSpec, InferenceEnsemble
from ensemble_operator.api.faults import explain
from ensemble_operator.api.placement import DevicePinning
from ensemble_operator.api.rollout import Mode, Preemption, Strategy
from ensemble_operator.controller.allotment import Allotment, Grant, allot
from ensemble_operator.controller.decision import OVERVIEW, Decision, Missing, Overview, Supply, Want
from ensemble_operator.controller.ledger import Ledger
from ensemble_operator.controller.placing import Copy, Request, catalogue
from ensemble_operator.controller.records import EnsembleRecord, OwnPod, PodRecord, ProfileRecord
from ensemble_operator.controller.resources import CLAIMS, CONFIG_MAPS, ENSEMBLES, NODES, PODS, PROFILES, SLICES
from ensemble_operator.controller.shortfall import nothing_to_use
from ensemble_operator.controller.solver import Solver
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.pod_record import broken_devices, held_devices
from ensemble_operator.inventory.simulated import simulated_devices
from ensemble_operator.inventory.slices import DRIVERS, DriverWords
from ensemble_operator.inventory.static import StaticInventory, static_inventory
from ensemble_operator.inventory.survey import inventory
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import profiling_name
from ensemble_operator.manifests.question import question
from ensemble_operator.manifests.resources import GPU_MILLIS, MIB, PROCESSES_BYTES, TORCH_BYTES
from ensemble_operator.manifests.revision import revision
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.profiles.table import ProfileTable, written
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError

GIVEN_UP = ("", "given-up")
"""Key of what was told of profiling: namespace and name of a pod that is not tried now -> why."""

Key = tuple[str, str]
State = Mapping[Any, Any]
_ROUNDS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What a pod of ours says of itself."""

    owner: str | None
    copy: int
    revision: str
    plan: str
    created: str
    serving: bool
    """A pod that serves and is to stay, not one that profiles or goes away."""
    devices: tuple[Device, ...]
    running: tuple[labels.Cell, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """An ensemble that wants devices, as far as it is understood."""

    key: Key
    record: EnsembleRecord
    spec: EnsembleSpec
    digests: Mapping[str, str]
    revision: str
    terms: Terms
    held: Mapping[int, Copy]
    """By copy, what it holds under its present revision, or under an older one."""
    changing: frozenset[int]
    """Copies that are held under an older revision."""


class Decider:
    """Decides, cycle after cycle; what is slow to find out is remembered as long as it does not change."""

    def __init__(self, gpu_reserve_bytes: int, dra_drivers: Mapping[str, DriverWords]) -> None:
        """Nothing is remembered yet.

        Args:
            gpu_reserve_bytes: Memory of each GPU that no member gets.
            dra_drivers: Drivers that publish GPUs, besides those that are known anyway.
        """
        self._reserve = gpu_reserve_bytes
        self._drivers = {**DRIVERS, **dra_drivers}
        self._solver = Solver()
        self._parsed: dict[str, tuple[str, EnsembleSpec | str]] = {}
        self._adopted: dict[str, tuple[OwnPod, Adopted | None]] = {}
        self._granted: dict[str, tuple[str, dict[int, Copy]]] = {}
        self._problems: dict[str, tuple[object, Problem]] = {}
        self._tables: dict[str, tuple[tuple[ProfileRecord, ...], ProfileTable, dict[str, str]]] = {}

    def __call__(self, state: State, until: float) -> dict[Any, Any]:
        """The decisions for all ensembles.

        Args:
            state: Records by (kind, namespace, name), and what was told of profiling.
            until: When planning has to come to an end, of the monotonic clock.
        """
        self._solver.until = until
        return _Round(self, _World(state)).run()

    def spec_of(self, record: EnsembleRecord) -> EnsembleSpec | str:
        """The spec, or what is wrong with it."""
        known = self._parsed.get(record.uid)
        if known is None or known[0] != record.document:
            known = self._parsed[record.uid] = (record.document, parse(record))
        return known[1]

    def adopted(self, uid: str, pod: OwnPod) -> Adopted | None:
        """What a pod of ours says of itself; None where it is not as we write it."""
        known = self._adopted.get(uid)
        if known is None or known[0] is not pod:
            known = self._adopted[uid] = (pod, _adopted(pod))
        return known[1]

    def profiles_of(self, namespace: str, records: tuple[ProfileRecord, ...]) -> tuple[ProfileTable, dict[str, str]]:
        """The profiles of a namespace, and the digests of files by where they came from."""
        known = self._tables.get(namespace)
        if known is None or known[0] != records:
            table = written(record.document for record in records)
            digests = {r.uri: r.document.spec.model.sha256 for r in records if r.uri is not None}
            known = self._tables[namespace] = (records, table, digests)
        return known[1], known[2]

    def problem_of(self, wish: Wish, devices: tuple[Device, ...], table: ProfileTable) -> Problem:
        """The planner's question on devices of these types; the very same object as long as nothing changes."""
        asked = (wish.record.document, tuple(wish.digests.items()), devices, table)
        known = self._problems.get(wish.record.uid)
        if known is None or known[0] != asked:
            problem = question(wish.spec, wish.digests, devices, table)
            known = self._problems[wish.record.uid] = (asked, problem)
        return known[1]

    def granted(self, uid: str) -> tuple[str, dict[int, Copy]] | None:
        """What was granted in the last round, and for which revision."""
        return self._granted.get(uid)

    def grant(self, uid: str, revision: str, copies: dict[int, Copy]) -> None:
        """Remember it until the next round."""
        self._granted[uid] = (revision, copies)

    def release(self, uid: str) -> None:
        """An ensemble holds nothing any more."""
        self._granted.pop(uid, None)

    def solve(self, problem: Problem) -> Plan:
        """The planner."""
        return self._solver(problem)

    def survey(self, world: _World) -> Inventory:
        """What the cluster has."""
        return inventory(
            world.nodes,
            world.uses,
            world.slices,
            world.claims,
            world.static,
            held_devices(world.uses),
            reserve_bytes=self._reserve,
            drivers=self._drivers,
            broken=broken_devices(world.uses),
        )

    def forget_all_but(self, uids: set[str], pods: set[str]) -> None:
        """Let go of what belonged to objects that are gone."""
        for memory in (self._parsed, self._granted, self._problems):
            for uid in memory.keys() - uids:
                del memory[uid]
        for uid in self._adopted.keys() - pods:
            del self._adopted[uid]


def make_decider(gpu_reserve_bytes: int, dra_drivers: Mapping[str, DriverWords]) -> Decider:
    """What the worker process starts with."""
    return Decider(gpu_reserve_bytes, dra_drivers)


def pod_of(want: Want) -> str:
    """Name of the pod that measures a profile."""
    return profiling_name(*want, "")


def parse(record: EnsembleRecord) -> EnsembleSpec | str:
    """The spec of a record, or what is wrong with it."""
    try:
        return InferenceEnsemble.model_validate(record.manifest()).spec
    except ValidationError as error:
        return "; ".join(str(fault) for fault in explain(error, InferenceEnsemble))


@dataclass(frozen=True, slots=True)
class _Offer:
    """What the cluster has for ensembles of the same terms."""

    kinds: tuple[Device, ...]
    """One device of each kind."""
    supply: Supply


class _World:
    """The state by kinds."""

    def __init__(self, state: State) -> None:
        kinds: dict[str, dict[Key, Any]] = defaultdict(dict)
        for key, record in state.items():
            if key != GIVEN_UP:
                kinds[key[0]][key[1], key[2]] = record
        self.ensembles: dict[Key, EnsembleRecord] = kinds[ENSEMBLES.plural]
        self.nodes = tuple(kinds[NODES.plural].values())
        self.pods: dict[Key, PodRecord] = kinds[PODS.plural]
        self.uses = tuple(pod.use for pod in self.pods.values() if pod.use is not None)
        self.slices = tuple(kinds[SLICES.plural].values())
        self.claims = tuple(kinds[CLAIMS.plural].values())
        self.given_up: Mapping[Key, str] = state.get(GIVEN_UP, {})
        profiles: dict[str, list[ProfileRecord]] = defaultdict(list)
        for (namespace, _), profile in sorted(kinds[PROFILES.plural].items()):
            profiles[namespace].append(profile)
        self.profiles = {namespace: tuple(found) for namespace, found in profiles.items()}
        self.static, self.fault = _static(kinds[CONFIG_MAPS.plural])


def _static(maps: Mapping[Key, Mapping[str, str]]) -> tuple[StaticInventory | None, str | None]:
    for (namespace, name), data in maps.items():
        try:
            return static_inventory(data, f"ConfigMap {namespace}/{name}"), None
        except EnsembleError as error:
            return StaticInventory({}), str(error)
    return None, None


class _Round:
    """One round of decisions."""

    def __init__(self, decider: Decider, world: _World) -> None:
        self._decider, self._world = decider, world
        self._inventory = decider.survey(world)
        self._everything = Ledger(self._inventory)
        self._offers: dict[object, _Offer] = {}
        self._decisions: dict[Any, Any] = {}
        pods = {key: pod.own for key, pod in world.pods.items() if pod.own is not None}
        self._pods: dict[Key, Adopted] = {
            key: adopted for key, pod in pods.items() if (adopted := decider.adopted(pod.uid, pod)) is not None
        }
        self._of_owner: dict[str | None, list[Adopted]] = defaultdict(list)
        for _, pod in sorted(self._pods.items()):
            self._of_owner[pod.owner].append(pod)
        decider.forget_all_but({r.uid for r in world.ensembles.values()}, {pod.uid for pod in pods.values()})

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
        allotment = self._allotted(requests)
        self._find_devices_to_measure_on(allotment.free)
        self._decisions[OVERVIEW] = self._overview()
        return self._decisions

    def _considered(self, key: Key, record: EnsembleRecord) -> tuple[Decision, tuple[Wish, Request] | None]:
        """What can be said before devices are handed out, and what is asked for then."""
        spec = self._decider.spec_of(record)
        if isinstance(spec, str):
            return Decision(fault=spec, frozen=True), None
        if spec.suspend:
            self._decider.release(record.uid)
            return Decision(suspended=True), None
        if self._world.fault is not None and not spec.devices.simulated:
            # Nobody is to lose devices by a slip of the pen.
            return Decision(frozen=True, waiting=self._world.fault), None
        table, by_uri = self._decider.profiles_of(key[0], self._world.profiles.get(key[0], ()))
        digests = {m.name: d for m in spec.members if (d := m.model.sha256 or by_uri.get(m.model.uri)) is not None}
        dry = spec.mode is Mode.PLAN_ONLY
        simulated = bool(spec.devices.simulated)
        terms = _terms(spec)
        offer = self._simulated_offer(spec) if simulated else self._offer(terms, spec)
        devices = offer.kinds
        missing = self._missing(key[0], spec, digests, devices, table)
        so_far = Decision(dry=dry, digests=digests, missing=missing, supply=offer.supply)
        unknown = [m.name for m in spec.members if m.name not in digests]
        if unknown:
            return replace(so_far, frozen=True, waiting=f"the digest of {', '.join(unknown)} is not known yet"), None
        own = revision(spec, digests)
        so_far = replace(so_far, revision=own)
        if any(m.given_up is None for m in missing) and not simulated and not self._of_owner[record.uid]:
            return replace(so_far, frozen=True, waiting="waits for profiles"), None
        held, old = self._held(record, own)
        changing = frozenset(copy for copy in old if copy < spec.replicas)  # the others end, and block nothing
        wish = Wish(key, record, spec, digests, own, terms, held, changing)
        kinds = (*devices, *(d for copy in held.values() for d in copy.devices))
        if not kinds:
            return replace(so_far, waiting=nothing_to_use(terms, self._everything)), None
        try:
            problem = self._decider.problem_of(wish, tuple(dict.fromkeys(kinds)), table)
        except EnsembleError as error:
            return replace(so_far, frozen=True, waiting=str(error)), None
        if simulated:
            return self._simulated(so_far, wish, problem), None
        return so_far, (wish, _request(wish, problem))

    def _offer(self, terms: Terms, spec: EnsembleSpec) -> _Offer:
        key = (terms.kinds, terms.cores_per_device, spec.placement.model_dump_json())
        if key not in self._offers:
            self._offers[key] = self._offered(terms)
        return self._offers[key]

    def _offered(self, terms: Terms) -> _Offer:
        open_nodes = [node for node in self._inventory.nodes if refusal(node, terms) is None]
        kinds = tuple(catalogue(self._inventory, terms))
        count = sum(self._everything.kinds(node.name, terms).total() for node in open_nodes)
        types, names = {device.type for device in kinds}, {node.name for node in open_nodes}
        used = {(d.node, d.name) for p in self._pods.values() for d in p.devices if d.type in types and d.node in names}
        return _Offer(kinds, Supply(count, max(0, count - len(used)), tuple(sorted({d.source for d in kinds}))))

    def _missing(
        self,
        namespace: str,
        spec: EnsembleSpec,
        digests: Mapping[str, str],
        devices: Iterable[Device],
        table: ProfileTable,
    ) -> tuple[Missing, ...]:
        """Members without a single usable point on a type that they may run on.

        Who writes a profile by hand for some batch sizes means those: the others are not measured.
        """
        found: dict[Want, Missing] = {}
        for member in spec.members:
            digest = digests.get(member.name)
            for device in devices:
                if device.kind not in member.device_kinds:
                    continue
                profile = table.get(digest, device.type, member.precision.value) if digest else None
                if profile is None or not any(p.batch_size in member.batch_sizes for p in profile.points):
                    want = (digest or member.model.uri, device.type, member.precision.value)
                    told = self._world.given_up.get((namespace, pod_of(want)))
                    found.setdefault(want, Missing(want, member.name, None, told))
        return tuple(found.values())

    def _held(self, record: EnsembleRecord, own: str) -> tuple[dict[int, Copy], frozenset[int]]:
        """What each copy holds, and which copies hold it under an older revision."""
        granted = self._decider.granted(record.uid)
        if granted is not None and granted[0] == own:
            return granted[1], frozenset()
        sets: dict[int, dict[tuple[bool, str, str, str], list[Adopted]]] = defaultdict(lambda: defaultdict(list))
        for pod in self._of_owner[record.uid]:
            if pod.serving:
                sets[pod.copy][pod.revision == own, pod.created, pod.revision, pod.plan].append(pod)
        held, changing = {}, set()
        for copy, of_copy in sets.items():
            current, _, revision, plan = max(of_copy)
            pods = [p for key, ps in of_copy.items() if key[2:] == (revision, plan) for p in ps]
            cells = {(d.node, d.name, member): size for pod in pods for d, member, size in pod.running}
            held[copy] = Copy(tuple(d for pod in pods for d in pod.devices), cells)
            if not current:
                changing.add(copy)
        return held, frozenset(changing)

    def _simulated_offer(self, spec: EnsembleSpec) -> _Offer:
        devices = simulated_devices(spec.devices.simulated)
        return _Offer(devices, Supply(len(devices), len(devices), tuple(sorted({d.source for d in devices}))))

    def _simulated(self, so_far: Decision, wish: Wish, problem: Problem) -> Decision:
        """Devices that nobody has are nobody's loss: each copy has all of them."""
        before = wish.held.get(0, Copy((), {}))
        try:
            plan = self._decider.solve(replace(problem, running=dict(before.running)))
        except EnsembleError as error:
            return replace(so_far, waiting=str(error))
        plans = dict.fromkeys(range(wish.spec.replicas), plan)
        running = {(device.node, device.name, member): size for device, member, size in plan.cells}
        self._decider.grant(wish.record.uid, wish.revision, {i: Copy((), running) for i in plans})
        return replace(so_far, plans=plans)

    def _allotted(self, requests: Mapping[Key, tuple[Wish, Request]]) -> Allotment:
        """Hand out the devices.

        Copies of an older revision are first planned beside what they hold; where there is no room, on what they hold;
        where that does not do either, what runs is left as it is.
        """
        beside = {
            key
            for key, (wish, _) in requests.items()
            if wish.changing and wish.spec.rollout.strategy is not Strategy.RECREATE
        }
        frozen: set[Key] = set()
        for _ in range(_ROUNDS):
            asked = [
                _beside(wish, request) if key in beside else request
                for key, (wish, request) in requests.items()
                if key not in frozen
            ]
            allotment = allot(asked, self._inventory, self._decider.solve, self._busy(asked))
            short = {
                key
                for key, (wish, request) in requests.items()
                if key not in frozen and wish.changing - allotment.grants[request.key].plans.keys()
            }
            blocked = {k for k in short - beside if allotment.grants[requests[k][1].key].preempted_by is None}
            if not short & beside and not blocked:
                break
            beside -= short
            frozen |= blocked
        for key, (wish, request) in requests.items():
            self._decided(wish, request, allotment.grants.get(request.key), frozen=key in frozen)
        return allotment

    def _decided(self, wish: Wish, request: Request, grant: Grant | None, *, frozen: bool) -> None:
        before = self._decisions[wish.key]
        if grant is None or frozen:
            blocked = "nothing can take the place of what runs; it goes on as it is"
            self._decisions[wish.key] = replace(before, frozen=True, waiting=blocked)
            return
        self._decisions[wish.key] = replace(
            before, plans=grant.plans, waiting=grant.waiting, preempted_by=grant.preempted_by
        )
        if not request.dry:
            copies = {}
            for copy, plan in grant.plans.items():
                used = {(d.node, d.name): d for d, _, _ in plan.cells}
                cells = {(d.node, d.name, member): size for d, member, size in plan.cells}
                copies[copy] = Copy(tuple(used.values()), cells)
            self._decider.grant(wish.record.uid, wish.revision, copies)

    def _busy(self, asked: Iterable[Request]) -> tuple[Device, ...]:
        """Devices of our pods that no copy is planned on: of pods that go away, that are replaced, that profile."""
        held = {(d.node, d.name) for request in asked for copy in request.held.values() for d in copy.devices}
        devices = {(d.node, d.name): d for _, pod in sorted(self._pods.items()) for d in pod.devices}
        return tuple(d for slot, d in devices.items() if slot not in held and d.kind is not DeviceKind.SIMULATED)

    def _find_devices_to_measure_on(self, free: tuple[Device, ...]) -> None:
        """Give each missing profile a device, or none where none is free: each device once."""
        left = {(d.node, d.name): d for d in free}
        chosen: dict[tuple[str, Want], Device] = {}
        for key, decision in self._decisions.items():
            missing = []
            for one in decision.missing:
                place = (key[0], one.want)
                if place not in chosen and (device := self._device_for(one.want[1], key, left)) is not None:
                    left.pop((device.node, device.name), None)
                    chosen[place] = device
                missing.append(replace(one, device=chosen.get(place)))
            if missing:
                self._decisions[key] = replace(decision, missing=tuple(missing))

    def _device_for(self, kind: str, key: Key, left: Mapping[Key, Device]) -> Device | None:
        spec = self._decider.spec_of(self._world.ensembles[key])
        if isinstance(spec, str) or spec.devices.simulated:
            return None
        terms = _terms(spec)
        allowed = self._offer(terms, spec).kinds
        wanted = next((d for d in allowed if d.type == kind), None)
        if wanted is None or wanted.kind is DeviceKind.CPU:
            return wanted  # cores are cut out of any node that has them; the scheduler has the last word
        nodes = {node.name: node for node in self._inventory.nodes}
        return next((d for d in left.values() if d.type == kind and refusal(nodes[d.node], terms) is None), None)

    def _overview(self) -> Overview:
        used = {(d.node, d.name) for pod in self._pods.values() for d in pod.devices}
        tally = Counter(
            (d.type, "used" if (d.node, d.name) in used else "free") for n in self._inventory.nodes for d in n.devices
        )
        notes = [f"{node.name}: {note}" for node in self._inventory.nodes for note in node.notes]
        return Overview(dict(tally), (*([self._world.fault] if self._world.fault else []), *notes))


def _adopted(pod: OwnPod) -> Adopted | None:
    try:
        return Adopted(
            owner=pod.owner,
            copy=int(pod.labels.get(labels.COPY, 0)),
            revision=pod.labels.get(labels.REVISION, ""),
            plan=pod.labels.get(labels.PLAN, ""),
            created=pod.created,
            serving=pod.labels.get("app.kubernetes.io/component") == labels.SERVING and not pod.deleting,
            devices=labels.held(pod.annotations),
            running=labels.running(pod.annotations),
        )
    except ValueError:
        return None


def _terms(spec: EnsembleSpec) -> Terms:
    return Terms(
        kinds=frozenset(spec.devices.effective_kinds),
        cores_per_device=spec.devices.cpu_cores_per_device,
        tolerations=spec.placement.tolerations,
        node_selector=spec.placement.node_selector,
        pinned=spec.placement.device_pinning is DevicePinning.STRICT,
    )


def _request(wish: Wish, problem: Problem) -> Request:
    spec = wish.spec
    gpus_only = DeviceKind.CPU not in wish.terms.kinds
    most = spec.devices.max or len(spec.members)
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
        pod_bytes=PROCESSES_BYTES + TORCH_BYTES + 2 * spec.serving.max_body_mib * MIB,
        held={} if spec.mode is Mode.PLAN_ONLY else wish.held,
    )


def _beside(wish: Wish, request: Request) -> Request:
    """The request with copies of an older revision planned on other devices than they hold; nobody gives way to it."""
    kept = {copy: held for copy, held in request.held.items() if copy not in wish.changing}
    return replace(request, held=kept, preempts=False)
