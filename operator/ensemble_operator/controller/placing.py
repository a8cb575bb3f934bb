"""Which free devices one copy of an ensemble is planned on: those of one node wherever one node suffices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from ensemble_operator.api.objective import Goal, Objective
from ensemble_operator.controller.ledger import Kind, Ledger, Offer, kind_of
from ensemble_operator.inventory.cpu import MILLIS
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError, OutOfMemoryError

Solve = Callable[[Problem], Plan]
"""The planner; it refuses with an EnsembleError. Asked the same question again, it had better remember the answer."""
Running = Mapping[tuple[str, str, str], int]
"""(node, device, member) -> batch size."""
Fits = Callable[[Counter[Kind]], bool]
"""Whether a choice of devices has all that it needs besides."""

_TRIES = 4
"""Choices of devices on one node that are planned, the most promising first."""
_NEAR = 0.8
"""A choice of at least this part of the best rate will do, where it spreads copies or leaves less over."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What one copy of an ensemble holds."""

    devices: tuple[Device, ...]
    running: Running


@dataclass(frozen=True, slots=True)
class Request:
    """An ensemble, as far as devices matter."""

    key: str
    """namespace/name"""
    members: tuple[PlanMember, ...]
    """With their profiles on every type of device that the cluster has for them (see `catalogue`)."""
    most: int
    """Most devices of one copy."""
    terms: Terms = field(default_factory=Terms)
    copies: int = 1
    priority: int = 0
    created: str = ""
    """The ensemble's creationTimestamp."""
    preempts: bool = False
    """Whether it may take devices from ensembles of lower priority."""
    dry: bool = False
    """Only to be planned (mode PlanOnly), with what is left; it takes nothing."""
    objective: Objective = field(default_factory=Objective)
    interference: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    pod_millis: int = 0
    """Thousandths of a core that each of its pods requests besides its CPU devices."""
    gpu_millis: int = 0
    """Thousandths of a core that a pod requests besides for each of its GPUs, where it has no CPU device."""
    gpu_beside_millis: int = 0
    """The same where it has."""
    pod_bytes: int = 0
    """Memory that each of its pods requests besides its CPU devices."""
    held: Mapping[int, Copy] = field(default_factory=dict)
    """By the number of the copy, what runs or is about to."""
    starting: frozenset[int] = frozenset()
    """Those of them whose pods have still to start, so that their nodes have to be open."""

    @property
    def rank(self) -> tuple[int, str, str]:
        """Who comes first: higher priority, then older, then by name."""
        return -self.priority, self.created, self.key

    def host_millis(self, gpus: int, cores: int) -> int:
        """Thousandths of a core that a pod requests for what drives so many GPUs, beside so many CPU devices."""
        return gpus * (self.gpu_beside_millis if cores else self.gpu_millis)


@dataclass(frozen=True, slots=True)
class Placed:
    """A copy that has a plan, and the devices that its cells are on."""

    plan: Plan
    devices: tuple[Device, ...]

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that it is on."""
        return frozenset(device.node for device in self.devices)

    @property
    def running(self) -> Running:
        """Its cells."""
        return {(device.node, device.name, member): batch for device, member, batch in self.plan.cells}

    @property
    def merit(self) -> float:
        """What its plan is good at, in whatever unit: the more the better."""
        plan = self.plan
        if plan.problem.objective.goal is Goal.FEWEST_DEVICES:
            return 1 / len(self.devices)
        if plan.goodput is not None:
            return plan.goodput
        return 1 / plan.p99_seconds if plan.p99_seconds is not None else plan.rate


def catalogue(inventory: Inventory, terms: Terms) -> tuple[Device, ...]:
    """One device of each kind that an ensemble may use, held by whomever: what its members have to be profiled on."""
    ledger, found = Ledger(inventory), dict[Kind, Device]()
    for node in inventory.nodes:
        if refusal(node, terms) is None:
            kinds = ledger.kinds(node.name, terms)
            for device in ledger.draw(node.name, {kind: 1 for kind in kinds if kind not in found}, terms):
                found[kind_of(device)] = device
    return tuple(found[kind] for kind in sorted(found))


def solved(request: Request, devices: Iterable[Device], running: Running, solve: Solve) -> Placed:
    """Plan a copy on these devices.

    Raises:
        EnsembleError: They do not do.
    """
    there = tuple(sorted(devices, key=lambda d: (d.node, d.name)))
    if not there:
        raise OutOfMemoryError("no device is free")
    objective = request.objective
    problem = Problem(
        there,
        request.members,
        objective,
        request.interference,
        node_cost=objective.node_cost,
        running=running,
        move_cost=objective.move_cost,
    )
    plan = solve(problem)
    return Placed(plan, tuple(sorted(plan.devices, key=lambda d: (d.node, d.name))))


def place(request: Request, ledger: Ledger, siblings: Mapping[str, int], running: Running, solve: Solve) -> Placed:
    """Find devices for a copy that holds none, and plan it on them.

    Args:
        request: The ensemble.
        ledger: What is free.
        siblings: By node, how many copies of the ensemble are there: copies spread.
        running: Cells that are there, so that a copy that has to be planned anew moves little.
        solve: The planner.

    Raises:
        EnsembleError: There is no room; the message is that of the choice that came nearest.
    """
    offers = ledger.offers(request.terms, request.pod_millis, request.pod_bytes, request.gpu_millis)
    alike: dict[Offer, list[str]] = {}
    for node, offer in offers.items():
        alike.setdefault(offer, []).append(node)
    worth = _worth(request.members, {kind for offer in alike for kind, _ in offer})
    away = _Away(frozenset(node for node, _, _ in running), siblings)
    found, refusals = [], list[EnsembleError]()
    for node, choice in _single(request, alike, away, worth):
        try:
            found.append((node, solved(request, ledger.draw(node, choice, request.terms), running, solve)))
        except EnsembleError as error:
            refusals.append(error)
    if found:
        best = max(placed.merit for _, placed in found)
        near = [(node, placed) for node, placed in found if placed.merit >= _NEAR * best]
        return min(near, key=lambda f: (away(f[0]), _total(offers[f[0]]) - len(f[1].devices), f[0]))[1]
    total = _sum(alike)
    for choice in _choices(request, total, worth, partial(_fits, request, total)):
        try:
            return solved(request, _across(request, ledger, offers, choice, away), running, solve)
        except EnsembleError as error:
            refusals.append(error)
    raise refusals[-1] if refusals else OutOfMemoryError("no device is free")


def extras(request: Request, ledger: Ledger, kept: tuple[Device, ...]) -> tuple[Device, ...]:
    """Free devices that a copy may have besides what it holds: on its own nodes, as many as its limit leaves."""
    drawn: list[Device] = []
    for node in sorted({device.node for device in kept}):
        if (limit := request.most - len(kept) - len(drawn)) <= 0:
            break
        if refusal(ledger.nodes[node], request.terms) is None:
            kinds = ledger.kinds(node, request.terms)
            worth = _worth(request.members, set(kinds))
            ordered = sorted((k for k in kinds if k in worth), key=lambda k: (-worth[k], k))
            fits = partial(_room_for, request, ledger, node, kept)
            drawn += ledger.draw(node, _filled(Counter(), kinds, ordered, limit, fits), request.terms)
    return tuple(drawn)


def within_limit(request: Request, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """As many of the devices as a copy may have, the most useful first."""
    if len(devices) <= request.most:
        return devices
    kinds = Counter(map(kind_of, devices))
    choice = next(_choices(request, kinds, _worth(request.members, set(kinds))), Counter[Kind]())
    kept = []
    for device in sorted(devices, key=lambda d: (d.node, d.name)):
        if choice[kind_of(device)] > 0:
            choice[kind_of(device)] -= 1
            kept.append(device)
    return tuple(kept)


def _worth(members: tuple[PlanMember, ...], kinds: Iterable[Kind]) -> dict[Kind, float]:
    """Speed of a device of each kind that can run any member: the members' mean, each against its fastest kind."""
    speeds = {kind: [_speed(member, kind) for member in members] for kind in kinds}
    fastest = [max((row[m] for row in speeds.values()), default=0.0) for m in range(len(members))]
    return {
        kind: sum(speed / best for speed, best in zip(row, fastest, strict=True) if best) / len(members)
        for kind, row in speeds.items()
        if any(row) or any(_beside(member, kind) for member in members)
    }


def _speed(member: PlanMember, kind: Kind) -> float:
    """Rows per second of a member alone on a device, or over it and cores beside it; 0 where it does not run there."""
    profiles = [profile for type_, profile in member.pairs.items() if type_.startswith(f"{kind.type}:")]
    if kind.type in member.profiles:
        profiles.append(member.profiles[kind.type])
    points = (p for profile in profiles for p in profile.points if p.memory_bytes <= kind.memory_bytes)
    return max((p.batch_size / p.seconds for p in points), default=0.0)


def _beside(member: PlanMember, kind: Kind) -> bool:
    """Whether a member can be partitioned over some device and these cores."""
    return kind.kind is DeviceKind.CPU and any(type_.endswith(f":{kind.type}") for type_ in member.pairs)


@dataclass(frozen=True, slots=True)
class _Away:
    """How far a node is from where a copy best goes: where it is already, then where fewest of its like are."""

    home: frozenset[str]
    siblings: Mapping[str, int]

    def __call__(self, node: str) -> tuple[bool, int]:
        return node not in self.home, self.siblings.get(node, 0)


def _single(
    request: Request, alike: Mapping[Offer, list[str]], away: _Away, worth: Mapping[Kind, float]
) -> Iterator[tuple[str, Counter[Kind]]]:
    """Choices on one node each, the most promising first: of the nodes that allow the same one, the best to take."""
    best: dict[frozenset[tuple[Kind, int]], tuple[tuple[bool, int], int, str]] = {}
    for offer, nodes in alike.items():
        key = min((away(node), _total(offer), node) for node in nodes)
        for choice in _choices(request, dict(offer), worth, partial(_fits, request, dict(offer))):
            chosen = frozenset(choice.items())
            best[chosen] = min(best.get(chosen, key), key)
    scored = sorted(
        ((node, Counter(dict(chosen)), distance) for chosen, (distance, _, node) in best.items()),
        key=lambda one: (-math.fsum(worth[kind] * count for kind, count in one[1].items()), one[2], one[0]),
    )
    yield from ((node, choice) for node, choice, _ in scored[:_TRIES])
    roomy = sorted(scored[_TRIES:], key=lambda one: (-_memory(one[1]), one[0]))
    yield from ((node, choice) for node, choice, _ in roomy[:_TRIES])


def _memory(choice: Mapping[Kind, int]) -> int:
    return sum(kind.memory_bytes * count for kind, count in choice.items())


def _any(_: Counter[Kind]) -> bool:
    return True


def _split(choice: Mapping[Kind, int]) -> tuple[int, int]:
    """How many devices of a choice are GPUs, and how many are CPU devices."""
    cores = sum(count for kind, count in choice.items() if kind.kind is DeviceKind.CPU)
    return sum(choice.values()) - cores, cores


def _fits(request: Request, offer: Mapping[Kind, int], choice: Counter[Kind]) -> bool:
    """Whether what a node offers has the cores that drive the GPUs of a choice, too."""
    gpus, cores = _split(choice)
    millis = MILLIS * request.terms.cores_per_device
    return not cores or cores * millis + request.host_millis(gpus, cores) <= _split(offer)[1] * millis


def _room_for(request: Request, ledger: Ledger, node: str, kept: tuple[Device, ...], choice: Counter[Kind]) -> bool:
    """The same of a choice beside what a copy has on a node already."""
    has = _split(Counter(kind_of(device) for device in kept if device.node == node))
    gpus, cores = _split(choice)
    more = request.host_millis(has[0] + gpus, has[1] + cores) - request.host_millis(*has)
    return not more or ledger.room(node, MILLIS * request.terms.cores_per_device * cores + more, 0)


def _choices(
    request: Request, kinds: Mapping[Kind, int], worth: Mapping[Kind, float], fits: Fits = _any
) -> Iterator[Counter[Kind]]:
    """Up to `most` devices such that every member has one that can run it: the fastest, then the largest."""
    orders = (lambda k: (-worth[k], -k.memory_bytes, k), lambda k: (-k.memory_bytes, -worth[k], k))
    before: Counter[Kind] | None = None
    for order in orders:
        ordered = sorted((kind for kind in kinds if kind in worth), key=order)
        choice = _cover(request, kinds, ordered, fits)
        if choice is not None:
            paired = _with_cores(request, choice, kinds, fits)
            choice = _filled(choice, kinds, ordered, request.most, fits)
            if choice != before:
                yield choice
                if paired is not None and paired != choice:
                    yield paired
            before = choice


def _with_cores(request: Request, choice: Counter[Kind], kinds: Mapping[Kind, int], fits: Fits) -> Counter[Kind] | None:
    """The choice with cores for each device, so that members may be partitioned; None where none can or has room."""
    cores = next((kind for kind in sorted(kinds) if any(_beside(member, kind) for member in request.members)), None)
    if cores is None:
        return None
    paired = Counter(choice)
    scarce = sum(count for kind, count in choice.items() if kind.kind is not DeviceKind.CPU)
    paired[cores] = max(paired[cores], min(kinds[cores], scarce or 2))
    while paired[cores] > choice[cores] and not fits(paired):
        paired[cores] -= 1
    return paired if paired.total() <= request.most and paired != choice else None


def _cover(request: Request, kinds: Mapping[Kind, int], ordered: list[Kind], fits: Fits) -> Counter[Kind] | None:
    """As few devices as will do for every member to have one that can run it; None where that cannot be."""
    choice: Counter[Kind] = Counter()
    able = [[kind for kind in ordered if _speed(member, kind)] for member in request.members]
    for kinds_of_member in sorted(able, key=len):
        if not any(choice[kind] for kind in kinds_of_member):
            left = (kind for kind in kinds_of_member if choice[kind] < kinds[kind])
            best = next((kind for kind in left if fits(choice + Counter([kind]))), None)
            if best is None or choice.total() >= request.most:
                return None
            choice[best] += 1
    return choice


def _filled(
    choice: Counter[Kind], kinds: Mapping[Kind, int], ordered: list[Kind], most: int, fits: Fits
) -> Counter[Kind]:
    """The choice, filled up to `most` devices."""
    full = Counter(choice)
    for kind in ordered:
        more = max(0, min(kinds[kind] - full[kind], most - full.total()))
        while more and not fits(full + Counter({kind: more})):
            more -= 1
        full[kind] += more
    return +full


def _across(
    request: Request, ledger: Ledger, offers: Mapping[str, Offer], choice: Counter[Kind], away: _Away
) -> list[Device]:
    """Devices of a choice: of the nodes where the copy is, then of those that have the most of them."""
    missing, drawn, left = Counter(choice), list[Device](), dict(offers)
    while left and missing.total() > 0:
        of = {node: _affordable(request, offer, missing) for node, offer in left.items()}
        node = min(of, key=lambda n: (away(n)[0], -of[n].total(), away(n)[1], n))
        drawn += ledger.draw(node, of[node], request.terms)
        missing -= of[node]
        del left[node]
    return drawn


def _affordable(request: Request, offer: Offer, missing: Counter[Kind]) -> Counter[Kind]:
    """What of the devices that are missing a node offers, with the cores that drive its GPUs."""
    there = missing & Counter(dict(offer))
    while not _fits(request, dict(offer), there):
        there -= Counter([next(kind for kind in there if kind.kind is DeviceKind.CPU)])
    return there


def _sum(alike: Mapping[Offer, list[str]]) -> Counter[Kind]:
    total: Counter[Kind] = Counter()
    for offer, nodes in alike.items():
        total.update({kind: count * len(nodes) for kind, count in offer})
    return total


def _total(offer: Offer) -> int:
    return sum(count for _, count in offer)
