"""Why an ensemble has to wait, in the form "needs 2 devices of 40 GiB, the best node has 1 of 24 GiB"."""

from __future__ import annotations

import math
from collections import Counter

from ensemble_operator.controller.ledger import Kind, Ledger, Offer
from ensemble_operator.controller.placing import Request
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_operator.planner.problem import PlanMember
from ensemble_runtime.errors import EnsembleError, OutOfMemoryError

_GIB = 2**30
_NOTES = 3
_DRIVES = "each GPU takes a core besides in a pod that has CPU devices, and half a one in a pod that has none"


def shortfall(request: Request, free: Ledger, everything: Ledger, error: EnsembleError) -> str:
    """What a copy needs and what there is.

    Args:
        request: The ensemble that waits.
        free: What is free for it.
        everything: What there is, held by whomever.
        error: What the planner said of the choice that came nearest.
    """
    there = _usable(request, everything)
    if not there:
        return nothing_to_use(request.terms, everything, request.pod_millis, request.pod_bytes)
    if not isinstance(error, OutOfMemoryError):
        return str(error)
    size, count = _needs(request, {kind for kinds in there for kind, _ in kinds})
    if size == 0:
        return str(error)
    if count > request.most:
        limit = f"spec.devices.max permits {_devices(request.most)}; the members need {count} of {_gib(size)}"
        return f"{limit}: raise it, or permit smaller batch sizes"
    left = _usable(request, free)
    enough, _, best = max((_describe(kinds, size) for kinds in left), default=(0, 0, "no free device"))
    held = _total(there) - _total(left)
    others = f"; {_devices(held)} that it may use {'is' if held == 1 else 'are'} taken" if held > 0 else ""
    drives = f"; {_DRIVES}" if enough >= count and request.gpu_beside_millis else ""
    return f"needs {_devices(count)} of {_gib(size)}, the best node has {best}{others}{drives}"


def nothing_to_use(terms: Terms, everything: Ledger, millis: int = 0, size: int = 0) -> str:
    """Why no node has a device for an ensemble: how many are refused for which reason, and what the others' GPUs lack.

    Args:
        terms: What the ensemble asks of nodes.
        everything: What there is, held by whomever.
        millis: Thousandths of a core that a pod wants besides its devices.
        size: Bytes that it wants besides them.
    """
    refused: Counter[str] = Counter()
    notes = []
    for name, node in everything.nodes.items():
        reason = refusal(node, terms)
        if reason is not None:
            refused[reason.partition(":")[0]] += 1
        elif not everything.room(name, millis, size):
            refused["NoRoom"] += 1
        else:
            notes += [f"{name}: {note}" for note in node.notes]
    parts = ["no node has a device that it may use"]
    if refused:
        parts.append("nodes refused: " + ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items())))
    more = [f"and {len(notes) - _NOTES} more nodes with such notes"] if len(notes) > _NOTES else []
    return "; ".join([*parts, *notes[:_NOTES], *more])


def _usable(request: Request, ledger: Ledger) -> Counter[Offer]:
    """What nodes offer of what the ensemble can use, and how many nodes offer just that."""
    found: Counter[Offer] = Counter()
    offers = Counter(ledger.offers(request.terms, request.pod_millis, request.pod_bytes, request.gpu_millis).values())
    for offer, nodes in offers.items():
        usable = frozenset((k, c) for k, c in offer if any(k.type in m.profiles for m in request.members))
        if usable:
            found[usable] += nodes
    return found


def _total(offers: Counter[Offer]) -> int:
    return sum(count * nodes for offer, nodes in offers.items() for _, count in offer)


def _needs(request: Request, kinds: set[Kind]) -> tuple[int, int]:
    """Bytes and number of devices that hold the members at their smallest batch sizes: first fit, largest first."""
    least = sorted((_least(member, kinds) for member in request.members), reverse=True)
    roomy = sorted(kind.memory_bytes for kind in kinds if kind.memory_bytes >= least[0])
    size = roomy[0] if roomy else least[0]
    free: list[int] = []
    for need in least:
        at = next((i for i, room in enumerate(free) if room >= need), None)
        if at is None:
            free.append(size - need)
        else:
            free[at] -= need
    return size, len(free)


def _least(member: PlanMember, kinds: set[Kind]) -> int:
    sizes = (p.memory_bytes for kind in kinds if (f := member.profiles.get(kind.type)) for p in f.points)
    return min(sizes, default=0)


def _describe(offer: Offer, size: int) -> tuple[int, int, str]:
    """How many devices of a node are large enough, its largest device, and both in words."""
    enough = sum(count for kind, count in offer if kind.memory_bytes >= size)
    largest = max(kind.memory_bytes for kind, _ in offer)
    count = enough or sum(c for kind, c in offer if kind.memory_bytes == largest)
    return enough, largest, f"{count} of {_gib(largest)}"


def _devices(count: int) -> str:
    return f"{count} device" if count == 1 else f"{count} devices"


def _gib(size: int) -> str:
    """Bytes in GiB: 40 GiB, 0.5 GiB."""
    value = size / _GIB
    return f"{math.ceil(value * 10) / 10:g} GiB"
