"""Editions: what was asked for of an ensemble at one time, kept so that it can be gone back to.

An edition is all in a spec that copies are made of and planned by. Each is kept in a ControllerRevision, as those of
StatefulSets are, under a name made from its content. What may change without it (how many copies, which priority, how
to roll out) always follows the spec as it is now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import cut, digest
from ensemble_operator.manifests.objects import Object, Owner
from ensemble_operator.manifests.revision import revision

EDITION = f"{labels.GROUP}/edition"
"""Label: the hash in the name."""
SERVED = f"{labels.GROUP}/served"
"""Annotation: all copies were ready once."""
FAILURE = f"{labels.GROUP}/failure"
"""Annotation: why it was given up."""

_STANDING = {"replicas", "suspend", "mode", "priority", "preemption", "rollout"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an edition was given up."""

    asked: str
    """The spec that it was given up under (see `asked_hash`): it is tried again when that changes."""
    message: str


def content_of(spec: EnsembleSpec) -> Object:
    """What of a spec makes an edition; fields with their default are left out."""
    content: Object = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_STANDING)
    return content


def edition_hash(spec: EnsembleSpec, digests: Mapping[str, str]) -> str:
    """What tells editions apart, 10 hexadecimal digits.

    Args:
        spec: The ensemble's.
        digests: Model digest of each member: another file at the same address is another edition.
    """
    return digest([content_of(spec), dict(digests)], 10)


def asked_hash(spec: EnsembleSpec) -> str:
    """Hash of all that a user asks for; not of `replicas`, which autoscalers write."""
    return digest(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"replicas"}), 10)


def restored(content: Mapping[str, Any], present: EnsembleSpec) -> str:
    """The spec of an edition, with what always follows the present one; as JSON.

    Args:
        content: As `content_of` gives it.
        present: What is asked for now.
    """
    standing = present.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_STANDING)
    return json.dumps({**content, **standing}, sort_keys=True, separators=(",", ":"))


def edition_name(ensemble: str, edition: str) -> str:
    """Name of the ControllerRevision that keeps an edition."""
    return cut(ensemble, f"-{edition}")


def edition_object(
    owner: Owner,
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    ordinal: int,
    *,
    served: bool = False,
    failure: Failure | None = None,
) -> Object:
    """The ControllerRevision that keeps an edition.

    Args:
        owner: The ensemble.
        spec: Its spec.
        digests: Model digest of each member.
        ordinal: Later editions have higher ones.
        served: Whether all its copies were ready once.
        failure: Why it was given up.
    """
    edition = edition_hash(spec, digests)
    marks = {labels.REVISION: revision(spec, digests), EDITION: edition}
    notes = {SERVED: "true"} if served else {}
    if failure is not None:
        notes[FAILURE] = json.dumps({"asked": failure.asked, "message": failure.message})
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": owner.metadata(edition_name(owner.name, edition), labels.common(owner.name) | marks, notes),
        "revision": ordinal,
        "data": {"spec": content_of(spec), "digests": dict(digests)},
    }
