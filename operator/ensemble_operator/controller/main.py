"""Registration and start-up: kopf watches, and all that its handlers do is to take note and poke the loop.

Only `on.event` handlers are registered: kopf then writes nothing to any object, neither annotations nor finalizers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import kopf

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.decide import make_decider
from ensemble_operator.controller.health import Pulse, doors
from ensemble_operator.controller.kube import Kube, answered, connected
from ensemble_operator.controller.loop import Loop
from ensemble_operator.controller.metrics import Metrics
from ensemble_operator.controller.observer import Observer
from ensemble_operator.controller.outdated import watch_schemas
from ensemble_operator.controller.resources import (
    BUDGETS,
    CLAIMS,
    CONFIG_MAPS,
    ENSEMBLES,
    NODES,
    PODS,
    POLICIES,
    PROFILES,
    REVISIONS,
    SERVICES,
    SLICES,
    TEMPLATES,
    Resource,
)
from ensemble_operator.controller.settings import Settings
from ensemble_operator.controller.worker import Worker
from ensemble_runtime.errors import EnsembleError
from ensemble_runtime.logs import JsonFormatter

OURS = "app.kubernetes.io/part-of=ensembles"
"""What the operator makes bears this label, and a static inventory has to: nothing else of these kinds is watched."""
_PATIENCE_SECONDS = 180.0
"""Longer than planning and a round of retries against a server that is away."""
_MIB = 2**20
_PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 10.0, 15.0, 30.0)

_log = logging.getLogger(__name__)


class OperatorError(EnsembleError):
    """The operator cannot run; the message says why."""


async def run(settings: Settings) -> None:
    """Run the operator until it is told to stop.

    Raises:
        KubeError: The API server refuses what the operator needs.
        OperatorError: A part of it has ended by itself.
    """
    _set_up_logs(settings)
    metrics, cache, pulse = Metrics(), Cache(), Pulse(_PATIENCE_SECONDS)
    worker = Worker(partial(make_decider, settings.gpu_reserve_mib * _MIB, settings.dra_drivers))
    async with (
        connected(partial(_asked, metrics, pulse)) as kube,
        doors(
            liveness_port=settings.liveness_port,
            metrics_port=settings.metrics_port,
            fault=pulse.fault,
            registry=metrics.registry,
        ) as ports,
    ):
        _log.info("starts", extra={"livenessPort": ports[0], "metricsPort": ports[1]})
        sources = await answered(partial(sources_of, kube, settings))
        loop = Loop(settings, kube, cache, worker, metrics, sources, pulse.beat)
        try:
            await _until_one_ends(
                kopf.operator(
                    registry=registered(sources, partial(_noted, cache, loop, metrics)),
                    settings=kopf_settings(sources),
                    standalone=True,
                    clusterwide=not settings.namespace,
                    namespaces=[settings.namespace] if settings.namespace else [],
                ),
                loop.run(),
                Observer(cache, loop.saw).run(),
                watch_schemas(kube, metrics),
            )
        finally:
            worker.close()


async def sources_of(kube: Kube, settings: Settings) -> dict[Resource, str]:
    """The kinds that can be looked at, each with the selector of its labels.

    Raises:
        OperatorError: The CRDs are not there.
    """
    if not await kube.served(ENSEMBLES):
        raise OperatorError("the API server does not serve inferenceensembles.ensembles.dev/v1alpha1: install the CRDs")
    sources = dict.fromkeys((PROFILES, PODS, ENSEMBLES), "")
    sources |= dict.fromkeys((CONFIG_MAPS, SERVICES, BUDGETS, POLICIES, REVISIONS), OURS)
    if not settings.namespace:
        sources[NODES] = ""
        if await kube.served(SLICES):
            sources |= {SLICES: "", CLAIMS: "", TEMPLATES: OURS}
    return sources


def registered(sources: Mapping[Resource, str], note: Any) -> kopf.OperatorRegistry:
    """The handlers; `note` is given a kind and a raw event."""
    registry = kopf.OperatorRegistry()

    def _login(**arguments: Any) -> Any:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    kopf.on.login(registry=registry)(_login)  # else kopf imports another client for it
    for resource in sources:
        kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)(
            _handler(resource, note)
        )
    return registry


class Pauses:
    """Seconds between kopf's attempts at a request; they never end, for a watch that is given up ends the operator."""

    def __iter__(self) -> Iterator[float]:
        """From the first."""
        yield from _PAUSES
        while True:
            yield _PAUSES[-1]


def _handler(kind: Resource, note: Any) -> Any:
    async def take_note(event: Mapping[str, Any], **_: Any) -> None:
        note(kind, event)

    return take_note


def kopf_settings(sources: Mapping[Resource, str]) -> kopf.OperatorSettings:
    """How kopf watches: server-side filters, no scanning for namespaces and CRDs, nothing posted."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Pauses()
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 1
    for resource, selector in sources.items():
        if selector:
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = selector
    return settings


def _noted(cache: Cache, loop: Loop, metrics: Metrics, resource: Resource, event: Mapping[str, Any]) -> None:
    metrics.events.labels(resource.kind).inc()
    metrics.last_event.labels(resource.kind).set(time.time())
    take = cache.forget if event["type"] == "DELETED" else cache.observe
    if take(resource, event["object"]):
        loop.poke()


def _asked(metrics: Metrics, pulse: Pulse, verb: str, kind: str, status: int) -> None:
    """Each attempt at a request is a sign of life: a server that is away is no reason to restart the operator."""
    metrics.request(verb, kind, status)
    pulse.beat()


async def _until_one_ends(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run all; when one ends, by order or by failure, the others do too."""
    tasks = [asyncio.create_task(job) for job in jobs]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()


def _set_up_logs(settings: Settings) -> None:
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
