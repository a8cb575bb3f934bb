"""`/metrics`: the counters in the words of Prometheus, made when it asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ensemble_runtime.gateway.metrics import BOUNDS_SECONDS, Counters
from ensemble_runtime.pipeline.port import CellStatus, Health, Pipeline

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class EnsembleCollector(Collector):
    """Reads the counters and the pipeline's health at each scrape."""

    def __init__(self, pipeline: Pipeline[Any], counters: Counters) -> None:
        self._pipeline = pipeline
        self._counters = counters
        self._model = {"model": pipeline.config.name, "version": pipeline.config.version}

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        health = self._pipeline.health()
        yield from self._requests()
        yield from self._members(health)
        yield from self._shadows(health)
        yield from self._cells(health)
        yield from self._remotes(health)
        yield from self._processes(health)

    def _requests(self) -> Iterator[Metric]:
        counters = self._counters
        yield self._counter("request_success", "Requests answered with a prediction.", counters.succeeded)
        yield self._counter("request_partial", "Answers without all members, by quorum.", counters.partial)
        failure = self._family("request_failure", "Requests without a prediction.", "reason")
        for reason, count in counters.failed.items():
            failure.add_metric([*self._model.values(), reason.value], count)
        yield failure
        yield self._counter("count", "Rows of successful requests.", counters.rows)
        for name, text, value in (
            ("request_duration_us", "Time of successful requests, from head to answer.", counters.request_ns),
            ("compute_input_duration_us", "Their bodies' way into the arena.", counters.receive_ns),
            ("compute_infer_duration_us", "Their way through queues, members and combination.", counters.pipeline_ns),
            ("compute_output_duration_us", "Writing their answers.", counters.encode_ns),
            ("failure_duration_us", "Time of failed requests.", counters.failed_ns),
        ):
            yield self._counter(name, f"{text} In microseconds.", value / 1e3)
        yield self._latency()
        pending = GaugeMetricFamily(
            "ensemble_inference_pending_request_count", "Requests that hold rows.", labels=list(self._model)
        )
        pending.add_metric(list(self._model.values()), self._pipeline.in_flight)
        yield pending

    def _latency(self) -> Metric:
        bounds = [*(repr(bound) for bound in BOUNDS_SECONDS), "+Inf"]
        histogram = HistogramMetricFamily(
            "ensemble_inference_request_seconds", "Latency of successful requests.", labels=list(self._model)
        )
        buckets = list(zip(bounds, accumulate(self._counters.buckets), strict=True))
        histogram.add_metric(list(self._model.values()), buckets, self._counters.request_ns / 1e9)
        return histogram

    def _members(self, health: Health) -> Iterator[Metric]:
        missing = self._family("member_missing", "Requests that a member was missing from.", "member")
        for member, count in self._counters.missing.items():
            missing.add_metric([*self._model.values(), member], count)
        yield missing
        waiting = GaugeMetricFamily("ensemble_member_queue_rows", "Rows that wait for a member.", labels=["member"])
        for member, rows in health.queue_rows.items():
            waiting.add_metric([member], rows)
        yield waiting

    def _shadows(self, health: Health) -> Iterator[Metric]:
        for name, text, counts in (
            ("rows", "Answered rows that a shadow predicted, too.", {s.name: s.rows for s in health.shadows}),
            (
                "agreeing_rows",
                "Those for which it has the answer's class.",
                {s.name: s.agreeing for s in health.shadows if s.agreeing is not None},
            ),
            (
                "distance",
                "Mean distance of each of those rows' numbers from the answer's, added up.",
                {s.name: s.apart for s in health.shadows if s.apart is not None},
            ),
        ):
            family = CounterMetricFamily(f"ensemble_shadow_{name}", text, labels=[*self._model, "member"])
            for member, count in counts.items():
                family.add_metric([*self._model.values(), member], count)
            if counts:
                yield family

    def _cells(self, health: Health) -> Iterator[Metric]:
        labels = ["member", "device"]

        def counter(name: str, text: str, values: dict[CellStatus, float]) -> Metric:
            family = CounterMetricFamily(name, text, labels=labels)
            for cell, value in values.items():
                family.add_metric([cell.member, cell.device], value)
            return family

        cells = health.cells
        yield counter("ensemble_inference_exec_count", "Batches computed.", {c: c.batches for c in cells})
        yield counter("ensemble_cell_rows", "Rows computed.", {c: c.rows for c in cells})
        yield counter("ensemble_cell_busy_seconds", "Seconds spent computing.", {c: c.busy_seconds for c in cells})
        yield counter("ensemble_cell_errors", "Batches that failed.", {c: c.errors for c in cells})
        yield counter("ensemble_cell_restarts", "Restarts of the cell's process.", {c: c.restarts for c in cells})
        ready = GaugeMetricFamily("ensemble_cell_ready", "Whether the cell serves.", labels=labels)
        size = GaugeMetricFamily("ensemble_cell_batch_size", "Most rows of one batch.", labels=labels)
        for cell in cells:
            ready.add_metric([cell.member, cell.device], float(cell.state == "Ready"))
            size.add_metric([cell.member, cell.device], cell.batch_size)
        yield ready
        yield size
        serving = GaugeMetricFamily("ensemble_ready", "Whether the ensemble serves.", labels=list(self._model))
        serving.add_metric(list(self._model.values()), float(health.ready))
        yield serving

    def _remotes(self, health: Health) -> Iterator[Metric]:
        labels = ["remote"]
        up = GaugeMetricFamily("ensemble_remote_up", "Whether the shard can be reached.", labels=labels)
        counters = [
            CounterMetricFamily(f"ensemble_remote_{name}", text, labels=labels)
            for name, text in (
                ("requests", "Batches handed over to the shard."),
                ("sent_bytes", "Bytes sent to the shard."),
                ("received_bytes", "Bytes received from the shard."),
                ("lost_connections", "Connections to the shard that ended."),
            )
        ]
        for remote in health.remotes:
            up.add_metric([remote.name], float(remote.connections > 0))
            values = (remote.requests, remote.sent_bytes, remote.received_bytes, remote.lost)
            for family, value in zip(counters, values, strict=True):
                family.add_metric([remote.name], value)
        yield from (up, *counters) if health.remotes else ()

    def _processes(self, health: Health) -> Iterator[Metric]:
        labels = ["role", "pid"]
        memory = GaugeMetricFamily("ensemble_process_resident_bytes", "Resident memory.", labels=labels)
        cpu = CounterMetricFamily("ensemble_process_cpu_seconds", "User and system time.", labels=labels)
        roles: dict[int, list[str]] = {}
        for role, pid in health.processes.items():
            roles.setdefault(pid, []).append(role)
        for cell in health.cells:
            roles.setdefault(cell.pid, []).append(f"{cell.member}@{cell.device}")
        for pid, names in roles.items():
            if usage := process_usage(pid):
                memory.add_metric([",".join(names), str(pid)], usage[0])
                cpu.add_metric([",".join(names), str(pid)], usage[1])
        yield memory
        yield cpu

    def _family(self, name: str, text: str, label: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"ensemble_inference_{name}", text, labels=[*self._model, label])

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"ensemble_inference_{name}", text, labels=list(self._model))
        family.add_metric(list(self._model.values()), value)
        return family


def exposition(pipeline: Pipeline[Any], counters: Counters) -> bytes:
    """The page that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EnsembleCollector(pipeline, counters))
    return generate_latest(registry)


def process_usage(pid: int) -> tuple[int, float] | None:
    """Resident bytes and CPU seconds of a process, from /proc (see proc(5)); None if it is gone."""
    folder = Path("/proc") / str(pid)
    try:
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE
        # The command, in parentheses, may hold anything; user and system time are the 12th and 13th fields after it.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError, ValueError):
        return None
    return resident, (int(fields[11]) + int(fields[12])) / _TICKS
