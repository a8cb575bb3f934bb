"""How model files come into a pod: fetched before it serves, or mounted from PersistentVolumeClaims.

Each Secret is given to one init container alone, which fetches the files that need it into the pod's cache; the
container that serves finds them there by their digests and never sees a credential.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ensemble_runtime.config import Member, ModelSource

CACHE = "/var/cache/ensembles"
"""Where the model cache is mounted."""
_CLAIMS = "/mnt/claims"
_PVC = "pvc://"


@dataclass(frozen=True, slots=True)
class Fetch:
    """What one init container fetches."""

    file: str
    """Name of its request in the ConfigMap."""
    secret: str | None
    members: tuple[Member, ...]

    def document(self) -> dict[str, Any]:
        """The request of `ensemble-runtime fetch`."""
        return {"members": [m.model_dump(mode="json", by_alias=True, exclude_defaults=True) for m in self.members]}


def in_pod(source: ModelSource) -> ModelSource:
    """The source as the pod sees it: claims are folders, and the Secret is not its business."""
    uri = source.uri
    if uri.startswith(_PVC):
        uri = f"file://{_CLAIMS}/{uri.removeprefix(_PVC)}"
    return source.model_copy(update={"uri": uri, "secret_name": None})


def fetches(members: Iterable[Member]) -> tuple[Fetch, ...]:
    """The init containers that bring these members' files, one for each Secret and one for what needs none.

    Args:
        members: With their sources as the user wrote them. One without a digest is left out: it could not be found in
            the cache, so the container that serves has to fetch it anyhow.
    """
    groups: dict[str | None, list[Member]] = {}
    for member in members:
        if member.model.sha256 is not None and not member.model.uri.startswith((_PVC, "file://")):
            plain = member.model_copy(update={"model": in_pod(member.model)})
            groups.setdefault(member.model.secret_name, []).append(plain)
    ordered = sorted(groups.items(), key=lambda group: group[0] or "")
    return tuple(Fetch(f"fetch-{i}.json", secret, tuple(found)) for i, (secret, found) in enumerate(ordered))


def claims(sources: Iterable[ModelSource]) -> tuple[str, ...]:
    """The PersistentVolumeClaims that hold some of the files."""
    found = {s.uri.removeprefix(_PVC).partition("/")[0] for s in sources if s.uri.startswith(_PVC)}
    return tuple(sorted(found))


def volumes(claims: Iterable[str]) -> list[dict[str, Any]]:
    """The claims as volumes, read-only: so they can be shared, and nobody changes their owners."""
    return [
        {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for i, claim in enumerate(claims)
    ]


def mounts(claims: Iterable[str]) -> list[dict[str, Any]]:
    """Where they are mounted."""
    return [
        {"name": f"claim-{i}", "mountPath": f"{_CLAIMS}/{claim}", "readOnly": True} for i, claim in enumerate(claims)
    ]
