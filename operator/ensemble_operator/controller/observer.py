"""Asks pods what they really have and do: the GPU behind each slot, and the rows that were served.

A courtesy to whoever reads the status: nothing is decided by it, and nothing waits for it. A pod that does not answer,
because a NetworkPolicy forbids it or there is none, is asked less and less often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from ensemble_operator.controller.backoff import Backoff
from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.records import COMPONENT, OwnPod
from ensemble_operator.controller.resources import PODS
from ensemble_operator.controller.status import Observed
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.runtime_config import PORT

_PERIOD_SECONDS = 60.0
_ANSWER_SECONDS = 2.0
_AT_ONCE = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0
_DIGITS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a pod told last."""

    pod: str
    uuids: dict[str, str]
    """By slot."""
    rows: float
    """Served since its start."""
    moment: float
    rate: float | None
    """Rows per second since the time before."""


class Observer:
    """Asks all ready pods, again and again."""

    def __init__(self, cache: Cache, tell: Callable[[str, Observed], None], port: int = PORT) -> None:
        """`tell` is given an ensemble's uid and what its pods report; `port` is theirs."""
        self._cache, self._tell, self._port = cache, tell, port
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._sights: dict[str, Sight] = {}
        self._told: set[str] = set()
        """The ensembles of which something was told last."""

    async def run(self) -> None:
        """Ask until cancelled."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await asyncio.sleep(_PERIOD_SECONDS)
                await self.ask_all(session)

    async def ask_all(self, session: aiohttp.ClientSession) -> None:
        """Ask each ready pod once, and tell what came of it."""
        pods = {
            name: record.own
            for (_, name), record in self._cache.all(PODS).items()
            if record.own is not None and _serves(record.own)
        }
        now = time.monotonic()
        self._backoff.look(now)
        free = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str, pod: OwnPod) -> None:
            async with free:
                await self._ask(session, name, pod)

        await asyncio.gather(*(one(n, p) for n, p in pods.items() if not self._backoff.waits(p.uid, now)))
        alive = {pod.uid for pod in pods.values()}
        for uid in self._sights.keys() - alive:
            del self._sights[uid]
        by_owner: dict[str, list[tuple[OwnPod, Sight]]] = defaultdict(list)
        for pod in pods.values():
            if pod.owner is not None and pod.uid in self._sights:
                by_owner[pod.owner].append((pod, self._sights[pod.uid]))
        for owner in self._told - by_owner.keys():
            self._tell(owner, Observed())
        for owner, sights in by_owner.items():
            self._tell(owner, seen_together(sights))
        self._told = set(by_owner)

    async def _ask(self, session: aiohttp.ClientSession, name: str, pod: OwnPod) -> None:
        root = f"http://{pod.address}:{self._port}/v2"
        before = self._sights.get(pod.uid)
        try:
            if before is None:
                uuids = {
                    d["name"]: d["uuid"] for d in await _json(session, f"{root}/ensemble/devices") if d.get("uuid")
                }
            else:
                uuids = before.uuids
            head = pod.labels.get(labels.ROLE) == labels.HEAD
            model = pod.labels.get(labels.ENSEMBLE, "")
            stats = await _json(session, f"{root}/models/{model}/stats") if head else {"model_stats": []}
            rows = float(sum(entry["inference_count"] for entry in stats["model_stats"]))
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, AttributeError) as error:
            self._backoff.failed(pod.uid, str(error), time.monotonic())
            if before is not None:
                self._sights[pod.uid] = replace(before, rate=None)
            _log.debug("pod %s does not tell: %r", name, error)
            return
        self._backoff.worked(pod.uid)
        moment = time.monotonic()
        grown = before is not None and head and moment > before.moment and rows >= before.rows
        rate = (rows - before.rows) / (moment - before.moment) if before is not None and grown else None
        self._sights[pod.uid] = Sight(name, uuids, rows, moment, rate)


def seen_together(sights: Iterable[tuple[OwnPod, Sight]]) -> Observed:
    """What the pods of an ensemble report; the rate in few digits, for each change of it is a write."""
    found = list(sights)
    uuids = {(sight.pod, slot): uuid for _, sight in found for slot, uuid in sight.uuids.items()}
    rates = [sight.rate for _, sight in found if sight.rate is not None]
    return Observed(uuids, float(f"{sum(rates):.{_DIGITS}g}") if rates else None)


def _serves(pod: OwnPod) -> bool:
    return pod.ready and not pod.deleting and bool(pod.address) and pod.labels.get(COMPONENT) == labels.SERVING


async def _json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)
