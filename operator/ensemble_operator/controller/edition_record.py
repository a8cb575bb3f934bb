"""What is kept of a ControllerRevision that keeps an edition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.manifests.edition import EDITION, FAILURE, SERVED, Failure


@dataclass(frozen=True, slots=True)
class EditionRecord:
    """An edition as it is kept."""

    owner: str | None
    """Uid of its ensemble."""
    name: str
    edition: str
    ordinal: int
    created: str
    content: str
    """What of the spec makes it, as JSON."""
    digests: Mapping[str, str]
    served: bool
    failure: Failure | None


def edition_record(body: Mapping[str, Any], owner: str | None) -> EditionRecord | None:
    """What is kept of a ControllerRevision; None where it is not as we write it, or goes away."""
    meta, data = body["metadata"], body.get("data") or {}
    notes = meta.get("annotations") or {}
    edition = (meta.get("labels") or {}).get(EDITION)
    if edition is None or "deletionTimestamp" in meta:
        return None
    try:
        failure = Failure(**json.loads(notes[FAILURE])) if FAILURE in notes else None
        content = json.dumps(data["spec"], sort_keys=True, separators=(",", ":"))
        digests = {str(member): str(value) for member, value in data["digests"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    ordinal, served = int(body.get("revision", 0)), notes.get(SERVED) == "true"
    return EditionRecord(
        owner, meta["name"], edition, ordinal, meta["creationTimestamp"], content, digests, served, failure
    )
