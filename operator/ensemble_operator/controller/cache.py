"""What was seen of the cluster: from lists and from watches, in whatever order they arrive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.controller.records import record_of
from ensemble_operator.controller.resources import Resource

_REMEMBERED = 50_000

Key = tuple[Resource, str, str]
"""Kind, namespace ('' where there is none), name."""
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was seen last."""

    uid: str
    version: int
    record: object
    """What is kept of it; None: nothing, it is of no interest."""


class Cache:
    """The latest record of each object. Resource versions order what is told twice or late; a uid never comes back."""

    def __init__(self, read: Callable[[Resource, Body], object | None] = record_of) -> None:
        """An empty cache; `read` makes a record of a body."""
        self._read = read
        self._seen: dict[Resource, dict[tuple[str, str], Seen]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def observe(self, resource: Resource, body: Body) -> bool:
        """Take note of an object that is there; whether anything that matters is new."""
        meta = body["metadata"]
        uid, version = meta["uid"], int(meta["resourceVersion"])
        key = (meta.get("namespace") or "", meta["name"])
        seen = self._seen.setdefault(resource, {})
        before = seen.get(key)
        if uid in self._gone or (before is not None and before.version >= version):
            return False
        record = self._read(resource, body)
        seen[key] = Seen(uid, version, record)
        if before is not None and before.uid == uid:
            return bool(before.record != record)
        return record is not None or (before is not None and before.record is not None)

    def forget(self, resource: Resource, body: Body) -> bool:
        """Take note that an object is gone; whether that matters."""
        meta = body["metadata"]
        return self.drop(resource, meta.get("namespace") or "", meta["name"], meta["uid"])

    def drop(self, resource: Resource, namespace: str, name: str, uid: str) -> bool:
        """Take note that the object of this uid is gone; whether that matters."""
        self._gone[uid] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        before = self._seen.get(resource, {}).get((namespace, name))
        if before is None or before.uid != uid:
            return False
        del self._seen[resource][namespace, name]
        return before.record is not None

    def replace(self, resource: Resource, bodies: Iterable[Body], version: int) -> bool:
        """Take note of a whole list; whether anything that matters is new.

        Args:
            resource: The kind.
            bodies: All objects of the kind.
            version: Resource version of the list; what was seen later stays.
        """
        changed, present = False, set()
        for body in bodies:
            present.add((body["metadata"].get("namespace") or "", body["metadata"]["name"]))
            changed |= self.observe(resource, body)
        seen = self._seen.setdefault(resource, {})
        for key in [key for key, one in seen.items() if key not in present and one.version <= version]:
            changed |= self.drop(resource, *key, seen[key].uid)
        return changed

    def all(self, resource: Resource) -> dict[tuple[str, str], Any]:
        """Records of a kind by (namespace, name)."""
        return {key: seen.record for key, seen in self._seen.get(resource, {}).items() if seen.record is not None}

    def get(self, resource: Resource, namespace: str, name: str) -> Seen | None:
        """One object."""
        return self._seen.get(resource, {}).get((namespace, name))
