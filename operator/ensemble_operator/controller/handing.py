"""Devices for everybody, while some change from one revision to the next: beside what they hold, or in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ensemble_operator.api.rollout import Strategy
from ensemble_operator.controller.allotment import Allotment, allot
from ensemble_operator.controller.placing import Request, Solve
from ensemble_operator.controller.wish import Wish, beside
from ensemble_operator.controller.world import Key
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_runtime.config import DeviceKind

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Handed:
    """Who gets what."""

    allotment: Allotment
    frozen: frozenset[Key]
    """Ensembles for whose new revision there is no room in any way: what they hold is theirs."""


def hand_out(
    requests: Mapping[Key, tuple[Wish, Request]], inventory: Inventory, solve: Solve, taken: Iterable[Device]
) -> Handed:
    """Hand out the devices.

    Copies of an older revision are first planned beside what they hold; where there is no room, on what they hold;
    where that does not do either, what runs is left as it is.

    Args:
        requests: What each ensemble wishes, and asks for.
        inventory: What the cluster has.
        solve: The planner.
        taken: The devices of all our pods.
    """
    ours = {(d.node, d.name): d for d in taken if d.kind is not DeviceKind.SIMULATED}
    aside = {
        key
        for key, (wish, _) in requests.items()
        if wish.changing and wish.spec.rollout.strategy is not Strategy.RECREATE
    }
    frozen: set[Key] = set()
    for _ in range(_ROUNDS):
        asked = [
            beside(wish, request) if key in aside else request
            for key, (wish, request) in requests.items()
            if key not in frozen
        ]
        allotment = allot(asked, inventory, solve, _busy(asked, ours))
        short = {
            key
            for key, (wish, request) in requests.items()
            if key not in frozen and wish.changing - allotment.grants[request.key].plans.keys()
        }
        blocked = {k for k in short - aside if allotment.grants[requests[k][1].key].preempted_by is None}
        if not short & aside and not blocked:
            break
        aside -= short
        frozen |= blocked
    return Handed(allotment, frozenset(frozen))


def _busy(asked: Iterable[Request], ours: Mapping[Key, Device]) -> tuple[Device, ...]:
    """Devices of our pods that no copy is planned on: of pods that go away, that are replaced, that profile."""
    held = {(d.node, d.name) for request in asked for copy in request.held.values() for d in copy.devices}
    return tuple(device for slot, device in ours.items() if slot not in held)
