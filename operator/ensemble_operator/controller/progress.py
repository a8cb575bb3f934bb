"""How far the pods of a change are, and whether they are late. Pure: the time is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ensemble_operator.controller.records import OwnPod
from ensemble_operator.controller.rollout import WantedSet


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the wanted pods are."""

    complete: bool = False
    """All of them are ready."""
    late: str | None = None
    """What is not ready though its time is over, and why."""
    due: float | None = None
    """Seconds from now until the next pod is late."""


def progress(
    wanted: Iterable[WantedSet], pods: Mapping[str, OwnPod], began: str | None, timeout: float, now: datetime
) -> Progress:
    """Whether pods become ready in time.

    Time runs from the moment at which a pod was made or ceased to be ready, and anew whenever another becomes ready:
    copies that are replaced one after the other have it each. A pod that ended is made anew, and gains no time by that.

    Args:
        wanted: The sets of pods that are to serve.
        pods: What is there, by name.
        began: When the present edition was written down; None: it is not yet.
        timeout: Seconds without progress after which a pod is late.
        now: The time.
    """
    names = [name for want in wanted for name in want.pods]
    found = {name: pods[name] for name in names if name in pods and not pods[name].deleting}
    ready = [pod for pod in found.values() if pod.ready]
    if not names or len(ready) == len(names):
        return Progress(complete=bool(names))
    start = _moment(began, now)
    last = max([start, *(_moment(pod.ready_since, start) for pod in ready)])
    ended = {name for name, pod in found.items() if pod.phase == "Failed" or pod.bereft}
    waiting = {
        name: last if name in ended else max(last, _moment(pod.created, last), _moment(pod.ready_since, last))
        for name, pod in sorted(found.items())
        if not pod.ready
    }
    if not waiting:
        return Progress()
    slowest = min(waiting, key=lambda name: waiting[name])
    left = timeout - (now - waiting[slowest]).total_seconds()
    if left > 0:
        return Progress(due=left)
    why = pods[slowest].trouble or "it runs and stays unready"
    return Progress(late=f"pod {slowest} was not ready within {timeout:g} s: {why}")


def _moment(written: str | None, otherwise: datetime) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(written) if written else otherwise
