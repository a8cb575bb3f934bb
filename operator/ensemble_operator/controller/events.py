"""Kubernetes Events about ensembles: one object for each thing that is said, however often it happens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from ensemble_operator.controller.kube import MANAGER
from ensemble_operator.controller.records import EnsembleRecord
from ensemble_operator.controller.resources import ENSEMBLES

_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell the user of an ensemble."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def event(ensemble: EnsembleRecord, notice: Notice, now: str, first: str, count: int) -> dict[str, Any]:
    """The Event object; the same notice about the same ensemble always has the same name.

    Args:
        ensemble: What it is about.
        notice: What is said.
        now: The time, as Kubernetes writes it.
        first: When it was said first.
        count: How often it was said.
    """
    said = "\0".join((ensemble.uid, notice.kind, notice.reason, notice.message))
    name = f"{ensemble.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": ensemble.namespace},
        "involvedObject": {
            "apiVersion": ENSEMBLES.api_version,
            "kind": ENSEMBLES.kind,
            "namespace": ensemble.namespace,
            "name": ensemble.name,
            "uid": ensemble.uid,
        },
        "type": notice.kind,
        "reason": notice.reason,
        "message": notice.message[:_LONGEST],
        "source": {"component": MANAGER},
        "firstTimestamp": first,
        "lastTimestamp": now,
        "count": count,
    }


class Journal:
    """Remembers what was said, so that it is not said again at once."""

    def __init__(self, quiet_seconds: float = 600.0, most: int = 10_000) -> None:
        """`quiet_seconds`: how long the same is not repeated; `most`: how many notices are remembered."""
        self._quiet, self._most = quiet_seconds, most
        self._said: dict[tuple[str, Notice], tuple[float, str, int]] = {}

    def admit(self, ensemble: EnsembleRecord, notice: Notice, seconds: float, now: str) -> dict[str, Any] | None:
        """The Event to write; None where the same was said just now.

        Args:
            ensemble: What it is about.
            notice: What is to be said.
            seconds: The moment, of a monotonic clock.
            now: The time, as Kubernetes writes it.
        """
        key = (ensemble.uid, notice)
        last, first, count = self._said.pop(key, (None, now, 0))
        if last is not None and seconds - last < self._quiet:
            self._said[key] = (last, first, count)
            return None
        self._said[key] = (seconds, first, count + 1)
        while len(self._said) > self._most:
            del self._said[next(iter(self._said))]
        return event(ensemble, notice, now, first, count + 1)
