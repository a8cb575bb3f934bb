"""The operator's own figures, in Prometheus' format."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ensemble_operator.api.status import ConditionType

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """All figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def named(name: str) -> str:
            return f"ensembles_operator_{name}"

        self.cycles = Histogram(named("reconcile_seconds"), "Time of a cycle", buckets=_SECONDS, registry=self.registry)
        self.errors = Counter(
            named("reconcile_errors"), "Failures in cycles, by what failed", ["what"], registry=self.registry
        )
        self.planning = Histogram(
            named("planning_seconds"), "Time of deciding within a cycle", buckets=_SECONDS, registry=self.registry
        )
        self.requests = Counter(
            named("api_requests"), "Requests to the API server", ["verb", "kind", "status"], registry=self.registry
        )
        self.events = Counter(named("watch_events"), "Events that watches brought", ["kind"], registry=self.registry)
        self.last_event = Gauge(
            named("watch_last_event_timestamp_seconds"),
            "When a watch brought its last",
            ["kind"],
            registry=self.registry,
        )
        self.last_cycle = Gauge(
            named("last_cycle_timestamp_seconds"), "When the last cycle ended", registry=self.registry
        )
        self.outdated = Gauge(
            named("crd_missing_fields"), "Fields that the API server's CRDs lack", registry=self.registry
        )
        self._devices = Gauge(
            named("devices"),
            "Devices that ensembles may use, by type and use",
            ["type", "state"],
            registry=self.registry,
        )
        self._ensembles = Gauge(
            named("ensembles"), "Ensembles by condition", ["condition", "status"], registry=self.registry
        )

    def request(self, verb: str, kind: str, status: int) -> None:
        """Count a request; status 0 stands for no answer."""
        self.requests.labels(verb, kind, status or "none").inc()

    def show_devices(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Show how many devices there are, by type and by 'used' or 'free'."""
        kinds = {kind for kind, _ in counts}
        _show(self._devices, {(kind, use): counts.get((kind, use), 0) for kind in kinds for use in ("used", "free")})

    def show_ensembles(self, conditions: Iterable[Mapping[str, str]]) -> None:
        """Show how many ensembles have which condition; each is told as condition type -> status."""
        tally = Tally(item for one in conditions for item in one.items())
        for kind in ConditionType:
            for status in ("True", "False", "Unknown"):
                tally.setdefault((kind.value, status), 0)
        _show(self._ensembles, tally)


def _show(gauge: Gauge, tally: Mapping[tuple[str, str], int]) -> None:
    gauge.clear()
    for labels, count in tally.items():
        gauge.labels(*labels).set(count)
