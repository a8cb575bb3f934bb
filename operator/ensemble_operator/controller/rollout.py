"""From the pods that are there to the pods that are wanted: what to make and what to delete now. Pure.

A copy of an ensemble is served by a set of pods of one revision and one plan. A set that is wanted is made beside the
one that runs where their devices are not the same; the old one goes when the new one is ready. Where they share
devices, the old one has to go first, one copy after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ensemble_operator.api.rollout import Strategy

Slot = tuple[str, str]
"""Node and device."""


@dataclass(frozen=True, slots=True)
class WantedSet:
    """The pods that are to serve one copy."""

    copy: int
    revision: str
    plan: str
    pods: tuple[str, ...]
    """Their names."""
    devices: frozenset[Slot]


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod that is there."""

    name: str
    uid: str
    copy: int
    revision: str
    plan: str
    devices: frozenset[Slot]
    head: bool
    """It answers requests, and is ready only when the whole copy is."""
    ready: bool
    deleting: bool
    ended: bool
    """It will not run again by itself: evicted, refused by its node, completed, or bereft of a model."""
    sick: bool = False
    """A device of its own is broken; until it goes, its node counts a sound one as taken by it."""
    lost: bool = False
    """It has lost its node, or a device: what replaces it is no change that somebody asked for."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A pod to delete, and why."""

    pod: RunningPod
    reason: str


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do now; the next cycle sees what came of it."""

    create: tuple[str, ...] = ()
    delete: tuple[Removal, ...] = ()
    serving: str | None = None
    """The revision that the Service is to lead to."""
    ready_copies: int = 0
    blocked: str | None = None
    """Why a change does not go on by itself."""
    crowded: str | None = None
    """What has to go before what replaces it can start, for there is no room for both."""


def steps(
    wanted: Sequence[WantedSet], pods: Iterable[RunningPod], strategy: Strategy, stranded: frozenset[int] = frozenset()
) -> Steps:
    """What to do now.

    Args:
        wanted: One set a copy; none: nothing is to run.
        pods: All pods of the ensemble, whatever their state.
        strategy: How a copy passes from one set to the next.
        stranded: Copies that are wanted too, but cannot be had whole: what is left of them stays.
    """
    there = sorted(pods, key=lambda pod: pod.name)
    of_copy: dict[int, list[RunningPod]] = defaultdict(list)
    for pod in there:
        of_copy[pod.copy].append(pod)
    copies = {want.copy for want in wanted}
    whole = {copy for copy in copies | stranded if any(pod.head and _ready(pod) for pod in of_copy[copy])}
    waiting = not copies <= whole  # some copy does not serve; another is not taken down for its sake
    create: list[str] = []
    delete = [Removal(pod, "it ended, and is made anew") for pod in there if pod.ended and not pod.deleting]
    blocked: str | None = None
    crowded: list[str] = []
    serving = _serving(wanted, there)
    needed = {slot for want in wanted if not _whole(want, there) for slot in want.devices}
    for want in wanted:
        others = [pod for pod in of_copy[want.copy] if not pod.ended and not _belongs(pod, want)]
        going = [pod for pod in others if not pod.deleting]
        if _whole(want, of_copy[want.copy]):
            # What the Service still leads to serves until it leads to the new: no copy less meanwhile.
            kept = [p for p in going if p.ready and p.revision == serving != want.revision and not p.devices & needed]
            delete += [Removal(pod, "replaced by a set that is ready") for pod in going if pod not in kept]
            continue
        in_the_way = any(pod.sick or pod.devices & want.devices or pod.name in want.pods for pod in others)
        lost = any(pod.lost for pod in going) and {pod.revision for pod in going} == {want.revision}
        if going and strategy is Strategy.ON_DELETE and not lost:
            names = ", ".join(pod.name for pod in going)
            blocked = f"copy {want.copy}: strategy OnDelete waits until {names} is deleted"
        elif going and (in_the_way or strategy is Strategy.RECREATE):
            crowded += [pod.name for pod in going if in_the_way]
            if strategy is Strategy.RECREATE or not waiting or want.copy not in whole:
                delete += [Removal(pod, "what replaces it needs its devices") for pod in going]
                waiting = True
        elif not in_the_way:
            taken = {pod.name for pod in there}
            create += [name for name in want.pods if name not in taken]
    surplus = [pod for pod in there if pod.copy not in copies and not pod.deleting and not pod.ended]
    delete += [Removal(pod, "this copy is not wanted") for pod in surplus if pod.sick or pod.copy not in stranded]
    first = f"strategy {strategy} takes {', '.join(crowded)} down first" if crowded else None
    return Steps(tuple(create), tuple(delete), serving, len(whole), blocked, first)


def within(budget: int, removals: Sequence[Removal]) -> tuple[Removal, ...]:
    """The removals that a cycle may do: those of pods that do not serve anyway come first."""
    return tuple(sorted(removals, key=lambda r: (r.pod.ready, r.pod.name))[:budget])


def _ready(pod: RunningPod) -> bool:
    return pod.ready and not pod.deleting


def _whole(want: WantedSet, pods: Iterable[RunningPod]) -> bool:
    return set(want.pods) <= {pod.name for pod in pods if _ready(pod) and _belongs(pod, want)}


def _belongs(pod: RunningPod, want: WantedSet) -> bool:
    return pod.name in want.pods and (pod.revision, pod.plan) == (want.revision, want.plan)


def _serving(wanted: Sequence[WantedSet], pods: Sequence[RunningPod]) -> str | None:
    """The revision with the most ready copies; where none is, of those that answer still as they leave.

    Of equals the wanted one. A Service leads to pods that leave only while it has no others.
    """
    if not wanted:
        return None
    answering = [pod for pod in pods if pod.head and pod.ready]
    ready: dict[str, set[int]] = defaultdict(set)
    for pod in [pod for pod in answering if not pod.deleting] or answering:
        ready[pod.revision].add(pod.copy)
    newest = wanted[0].revision
    return max({newest, *ready}, key=lambda r: (len(ready[r]), r == newest, r))
