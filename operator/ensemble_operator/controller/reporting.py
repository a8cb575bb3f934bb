"""Telling users: the status where it says something else than before, and an Event for each condition that turned."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.events import Journal, Notice
from ensemble_operator.controller.kube import Kube, KubeError
from ensemble_operator.controller.records import EnsembleRecord, canonical
from ensemble_operator.controller.resources import ENSEMBLES
from ensemble_operator.controller.status import View, conditions_of, notices, status


class Reporter:
    """Writes statuses and Events, and remembers the conditions of every ensemble."""

    def __init__(self, kube: Kube, cache: Cache) -> None:
        """`cache` knows the statuses as they are, and is told of those that are written."""
        self._kube, self._cache = kube, cache
        self._journal = Journal()
        self._conditions: dict[str, dict[str, str]] = {}

    def conditions(self) -> Iterable[Mapping[str, str]]:
        """Of each ensemble, condition type -> status."""
        return self._conditions.values()

    def forget_all_but(self, uids: set[str]) -> None:
        """Let go of ensembles that are gone."""
        for uid in self._conditions.keys() - uids:
            del self._conditions[uid]

    async def report(self, view: View) -> None:
        """Say of an ensemble what there is to say, if that is news.

        Raises:
            KubeError: The status cannot be written.
        """
        record = view.record
        seen = self._cache.get(ENSEMBLES, record.namespace, record.name)
        written = seen.record.status if seen is not None and isinstance(seen.record, EnsembleRecord) else record.status
        before: dict[str, Any] = json.loads(written)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        after = status(view, before, now)
        self._conditions[record.uid] = conditions_of(after)
        if canonical(after) == written:
            return
        body = {
            "apiVersion": ENSEMBLES.api_version,
            "kind": ENSEMBLES.kind,
            "metadata": {"name": record.name, "namespace": record.namespace, "uid": record.uid},
            "status": after,
        }
        result = await self._kube.apply_status(body)
        if result is None:
            return
        self._cache.observe(ENSEMBLES, result)
        for notice in notices(before, after):
            await self._tell(record, notice, now)

    async def _tell(self, record: EnsembleRecord, notice: Notice, now: str) -> None:
        event = self._journal.admit(record, notice, time.monotonic(), now)
        if event is not None:
            with contextlib.suppress(KubeError):  # an Event is a courtesy
                await self._kube.apply(event)
