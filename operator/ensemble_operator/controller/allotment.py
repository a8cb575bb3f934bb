"""Which ensemble may use which devices, and the plan of each copy on them.

Ensembles come in the order of their rank: higher priority first, then the older. What a copy holds it keeps, unless
a higher priority with leave to preempt cannot be served otherwise. One that waits reserves what is free for it, so
that those behind it cannot overtake it for ever; one that could not be served even if all behind it gave way reserves
nothing. What is left at the end goes to copies that gain by it. A copy that has lost devices and finds no others is
stranded: what is left of it stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ensemble_operator.controller.ledger import Ledger, kind_of
from ensemble_operator.controller.placing import Copy, Placed, Request, Solve, extras, place, solved, within_limit
from ensemble_operator.controller.shortfall import shortfall
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.terms import leaves, refusal
from ensemble_operator.manifests.resources import GPU_BESIDE_MILLIS
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError

_GROWTH = 1.1
"""A copy that runs gets more devices only for this factor, for its pods have to start anew."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an ensemble gets."""

    plans: Mapping[int, Plan]
    """By the number of the copy; copies that have to wait are absent."""
    waiting: str | None = None
    """Why copies are absent."""
    preempted_by: str | None = None
    """The ensemble that took devices which this one held."""
    stranded: Mapping[int, Copy] = field(default_factory=dict)
    """Of the copies that wait, those that lost devices to nobody, e.g. with a node, and what they held."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """Who gets what."""

    grants: Mapping[str, Grant]
    """By the ensembles' keys."""
    left: Ledger
    """What nobody has and nobody waits for."""

    @property
    def free(self) -> tuple[Device, ...]:
        """The GPUs of it."""
        return self.left.free_gpus()


def allot(requests: Iterable[Request], inventory: Inventory, solve: Solve, busy: Iterable[Device] = ()) -> Allotment:
    """Hand out the devices; the order of the requests plays no part.

    Args:
        requests: The ensembles that want devices; one that is suspended or deleted is absent, and holds nothing.
        inventory: What there is, those devices included that pods of ours hold.
        solve: The planner.
        busy: Devices that other pods of ours hold: those that profile, or go away.
    """
    return _Round(sorted(requests, key=lambda r: r.rank), inventory, solve, tuple(busy)).run()


@dataclass
class _State:
    """What an ensemble holds and gets in this round."""

    request: Request
    held: dict[int, Copy] = field(default_factory=dict)
    placed: dict[int, Placed] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    """Copies that stay on what they hold."""
    robbed: set[int] = field(default_factory=set)
    """Copies of whose devices somebody else has some now."""
    stranded: dict[int, Copy] = field(default_factory=dict)
    waiting: str | None = None
    preempted_by: str | None = None

    @property
    def siblings(self) -> Counter[str]:
        """By node, how many copies are there."""
        holding = ({device.node for device in copy.devices} for copy in self.held.values())
        return Counter(node for nodes in (*holding, *(p.nodes for p in self.placed.values())) for node in nodes)


class _Round:
    """One round of handing out."""

    def __init__(self, ranked: list[Request], inventory: Inventory, solve: Solve, busy: tuple[Device, ...]) -> None:
        self._solve = solve
        self._everything, self._free = Ledger(inventory), Ledger(inventory)
        for node, (gpus, cores) in _by_node(self._free.claim(busy)).items():
            if cores:  # as in the pods of those that hold both
                self._free.book(node, GPU_BESIDE_MILLIS * gpus, 0)
        self._states = [_State(request) for request in ranked]

    def run(self) -> Allotment:
        serving = [state for state in self._states if not state.request.dry]
        for state in serving:
            self._claim_held(state)
        for position, state in enumerate(serving):
            self._serve(state, serving[position + 1 :])
        for state in serving:
            self._grow(state)
        for state in self._states:
            if state.request.dry:
                self._rehearse(state)
        grants = {
            s.request.key: Grant({i: s.placed[i].plan for i in sorted(s.placed)}, s.waiting, s.preempted_by, s.stranded)
            for s in self._states
        }
        return Allotment(grants, self._free)

    def _claim_held(self, state: _State) -> None:
        """What a copy holds and can still use is its own; who ranks first comes first, should two hold the same."""
        request = state.request
        for index, held in sorted(request.held.items()):
            if index >= request.copies:
                continue
            there = [device for device in held.devices if self._may_stay(request, device)]
            got = self._free.claim(there)
            if any(self._everything.has(device) for device in {*there} - {*got}):
                state.robbed.add(index)
            state.held[index] = Copy(got, held.running)
            self._book(request, state.held[index].devices, 1)

    def _may_stay(self, request: Request, device: Device) -> bool:
        node, terms = self._free.nodes.get(device.node), request.terms
        bound = device.uuid is not None or device.kind is not DeviceKind.GPU or not terms.pinned
        return node is not None and device.kind in terms.kinds and bound and not leaves(node, terms)

    def _serve(self, state: _State, behind: list[_State]) -> None:
        """Serve every copy of an ensemble, those that run first."""
        request = state.request
        for index in sorted(range(request.copies), key=lambda i: (i not in state.held, i)):
            held = state.held.pop(index, Copy((), {}))
            kept = self._keep(request, index, held) if held.devices else None
            if kept is not None:
                state.kept.add(index)
            self._return(request, held.devices)
            if kept is None and state.waiting is not None and index not in request.held:
                continue  # what one new copy cannot have, the next cannot either
            try:
                placed = kept or self._find(state, held, behind)
            except EnsembleError as error:
                state.waiting = shortfall(request, self._free, self._everything, error)
                if index in request.held and index not in state.robbed:
                    state.stranded[index] = request.held[index]
                    self._take(request, held.devices)
                self._reserve(request, behind)
                continue
            state.placed[index] = placed
            self._take(request, placed.devices)

    def _keep(self, request: Request, index: int, held: Copy) -> Placed | None:
        """Plan a copy on what it holds, or on that and what is free beside it; None where that does not do."""
        runs = index not in request.starting
        devices = within_limit(request, held.devices)
        for more in ((), extras(request, self._free, devices)):
            try:
                placed = solved(request, (*devices, *more), held.running, self._solve)
            except EnsembleError:
                continue
            closed = any(refusal(self._free.nodes[node], request.terms) is not None for node in placed.nodes)
            if not closed or (runs and placed.running.items() <= held.running.items()):
                return placed  # nothing new starts where nothing new may start
        return None

    def _find(self, state: _State, held: Copy, behind: list[_State]) -> Placed:
        request = state.request
        try:
            return place(request, self._free, state.siblings, held.running, self._solve)
        except EnsembleError:
            placed = self._preempt(state, held, behind) if request.preempts else None
            if placed is None:
                raise
            return placed

    def _preempt(self, state: _State, held: Copy, behind: list[_State]) -> Placed | None:
        """Take devices from copies of lower priority: the lowest first, the youngest first, none that can be spared."""
        request = state.request
        lower = [other for other in behind if other.request.priority < request.priority]
        order = [(other, index) for other in reversed(lower) for index in sorted(other.held, reverse=True)]

        def attempt(victims: list[tuple[_State, int]]) -> Placed | None:
            ledger = self._free.clone()
            for other, index in victims:
                ledger.give(other.held[index].devices)
                _book(ledger, other.request, other.held[index].devices, -1)
            try:
                return place(request, ledger, state.siblings, held.running, self._solve)
            except EnsembleError:
                return None

        if (placed := attempt(order)) is None:
            return None
        low, high = 1, len(order)
        while low < high:  # the fewest of the order that do
            middle = (low + high) // 2
            if (found := attempt(order[:middle])) is not None:
                placed, high = found, middle
            else:
                low = middle + 1
        wanted = {(device.node, device.name) for device in placed.devices}
        victims = [v for v in order[:high] if wanted & {(d.node, d.name) for d in v[0].held[v[1]].devices}]
        if attempt(victims) is None:  # what they leave of cores and memory was needed too
            victims = order[:high]
        for spared in reversed(tuple(victims)):
            rest = [v for v in victims if v is not spared]
            if attempt(rest) is not None:
                victims = rest
        for other, index in victims:
            self._return(other.request, other.held.pop(index).devices)
            other.preempted_by = request.key
            other.robbed.add(index)
        return place(request, self._free, state.siblings, held.running, self._solve)

    def _reserve(self, request: Request, behind: list[_State]) -> None:
        """Keep what is free of what the ensemble would need, if those behind it, by giving way, could make room."""
        if not any(other.held for other in behind):
            return  # nobody has anything to give
        ledger = self._free.clone()
        for other in behind:
            for copy in other.held.values():
                ledger.give(copy.devices)
                _book(ledger, other.request, copy.devices, -1)
        for most in _sizes(request.most):
            try:
                wanted = place(dataclasses.replace(request, most=most), ledger, {}, {}, self._solve)
            except EnsembleError:
                continue
            missing = Counter(map(kind_of, wanted.devices))
            for node in sorted(self._free.nodes, key=lambda name: (name not in wanted.nodes, name)):
                there = missing & self._free.kinds(node, request.terms)
                self._free.take(self._free.draw(node, there, request.terms))
                missing -= there
            return

    def _grow(self, state: _State) -> None:
        """Give a copy that stays where it is more devices of its nodes, if it gains enough by them."""
        request = state.request
        for index in sorted(state.kept):
            placed = state.placed[index]
            more = extras(request, self._free, placed.devices)
            if not more:
                continue
            try:
                larger = solved(request, (*placed.devices, *more), placed.running, self._solve)
            except EnsembleError:
                continue
            if larger.merit >= _GROWTH * placed.merit:
                self._return(request, placed.devices)
                self._take(request, larger.devices)
                state.placed[index] = larger

    def _rehearse(self, state: _State) -> None:
        """Plan copies with what is left, and take nothing."""
        before, request = self._free, state.request
        self._free = before.clone()
        for index in range(request.copies):
            try:
                placed = place(request, self._free, state.siblings, {}, self._solve)
            except EnsembleError as error:
                state.waiting = shortfall(request, self._free, self._everything, error)
                break
            state.placed[index] = placed
            self._take(request, placed.devices)
        self._free = before

    def _take(self, request: Request, devices: tuple[Device, ...]) -> None:
        self._free.take(devices)
        self._book(request, devices, 1)

    def _return(self, request: Request, devices: tuple[Device, ...]) -> None:
        self._free.give(devices)
        self._book(request, devices, -1)

    def _book(self, request: Request, devices: tuple[Device, ...], sign: int) -> None:
        _book(self._free, request, devices, sign)


def _book(ledger: Ledger, request: Request, devices: tuple[Device, ...], sign: int) -> None:
    """What the pods on the devices' nodes want besides, one pod a node."""
    for node, (gpus, cores) in _by_node(devices).items():
        millis = request.pod_millis + request.host_millis(gpus, cores)
        ledger.book(node, sign * millis, sign * request.pod_bytes)


def _by_node(devices: Iterable[Device]) -> dict[str, tuple[int, int]]:
    """How many GPUs and CPU devices there are of each node."""
    found: dict[str, tuple[int, int]] = {}
    for device in devices:
        gpus, cores = found.get(device.node, (0, 0))
        found[device.node] = (gpus, cores + 1) if device.kind is DeviceKind.CPU else (gpus + 1, cores)
    return found


def _sizes(most: int) -> Iterator[int]:
    """1, 2, 4, ... and `most`."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most
