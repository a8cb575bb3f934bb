"""Applying and deleting the objects of ensembles. What comes of it is known at once: watches may be late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.kube import Kube, KubeError
from ensemble_operator.controller.records import ChildRecord
from ensemble_operator.controller.resources import BUDGETS, BY_KIND, PODS, POLICIES, SECRETS, SERVICES, Resource

_NAMED_BY_USERS = (SERVICES, BUDGETS, POLICIES)
"""Bear the ensemble's name, which somebody else's object may bear as well."""

Place = tuple[Resource, str, str]
"""Kind, namespace, name."""


class Writer:
    """Writes objects, and remembers what they said when they were applied."""

    def __init__(self, kube: Kube, cache: Cache, changed: Callable[[], None]) -> None:
        """`cache` is told what came of each write, and `changed` is called then."""
        self._kube, self._cache, self._changed = kube, cache, changed
        self._applied: dict[Place, str] = {}

    async def apply(self, body: dict[str, Any]) -> None:
        """Make an object what it is here; a Secret only where there is none of its name.

        Raises:
            KubeError: It is refused, or there is one of its name that is somebody else's.
        """
        resource, meta = BY_KIND[body["kind"]], body["metadata"]
        if resource is SECRETS:
            await self._kube.create(body)
            return
        if resource in _NAMED_BY_USERS:
            await self._refuse_foreign(resource, body)
        result = await self._kube.apply(body)
        if self._cache.observe(resource, result) and resource is not PODS:
            seen = self._cache.get(resource, meta["namespace"], meta["name"])
            if seen is not None and isinstance(seen.record, ChildRecord):
                self._applied[resource, meta["namespace"], meta["name"]] = seen.record.content
        self._changed()

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, *, at_once: bool = False) -> None:
        """Delete an object. A pod takes its time, which the watch tells of; or none, where its node is away.

        Raises:
            KubeError: It is refused.
        """
        answer = await self._kube.delete(resource, namespace, name, uid, at_once=at_once)
        left = answer.get("metadata", {}) if answer is not None else {}
        if "deletionTimestamp" in left and "resourceVersion" in left:  # of what is gone there is no version
            self._cache.observe(resource, answer or {})
        else:
            self._cache.drop(resource, namespace, name, uid)
        self._changed()

    def edited(self, place: Place, child: ChildRecord) -> bool:
        """Whether somebody has changed an object since it was applied."""
        return self._applied.get(place, child.content) != child.content

    def forget_all_but(self, there: set[Place]) -> None:
        """Let go of what is gone."""
        for place in self._applied.keys() - there:
            del self._applied[place]

    async def _refuse_foreign(self, resource: Resource, body: dict[str, Any]) -> None:
        """To apply by force would take over an object that somebody else has made."""
        meta = body["metadata"]
        if self._cache.get(resource, meta["namespace"], meta["name"]) is not None:
            return  # only what is ours is seen
        found = await self._kube.named(resource, meta["namespace"], meta["name"])
        owners = {owner["uid"] for owner in meta["ownerReferences"]}
        if found is not None and not any(o["uid"] in owners for o in found["metadata"].get("ownerReferences", ())):
            raise KubeError(
                f"{body['kind']} {meta['namespace']}/{meta['name']} is there already and not this ensemble's; "
                "delete or rename it, or name the ensemble otherwise",
                409,
            )
