"""What our pods say of themselves: an operator that starts takes over what runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ensemble_operator.controller.records import OwnPod
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests import labels


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
    bound: bool
    """It has its node already, and need not be let in any more."""
    ready: bool
    devices: tuple[Device, ...]
    running: tuple[labels.Cell, ...]


def settled(pods: Iterable[Adopted], revision: str) -> frozenset[int]:
    """The copies that have pods of this revision, each on its node."""
    there = [pod for pod in pods if pod.serving and pod.revision == revision]
    return frozenset(pod.copy for pod in there) - {pod.copy for pod in there if not pod.bound}


def adopted(pod: OwnPod) -> Adopted | None:
    """What a pod says of itself; None where it is not as we write it."""
    try:
        return Adopted(
            owner=pod.owner,
            copy=int(pod.labels.get(labels.COPY, 0)),
            revision=pod.labels.get(labels.REVISION, ""),
            plan=pod.labels.get(labels.PLAN, ""),
            created=pod.created,
            serving=pod.labels.get("app.kubernetes.io/component") == labels.SERVING and not pod.deleting,
            bound=bool(pod.node),
            ready=pod.ready,
            devices=labels.held(pod.annotations),
            running=labels.running(pod.annotations),
        )
    except ValueError:
        return None
