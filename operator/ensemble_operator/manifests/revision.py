"""What makes two pods the same: the user's intent and the plan, never the rendered pod.

So an upgrade of the operator that writes pods otherwise restarts none, and a change of the spec that no pod would
notice (replicas, priority, which devices may be planned with) restarts none either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.manifests.names import digest
from ensemble_operator.planner.plan import Plan

TEMPLATE = 1
"""Raised by hand, and only when pods of an older operator must not go on: it restarts every ensemble."""

_MEMBER = {"name", "model", "weight", "precision", "shadow", "partition"}
_PLACEMENT = {
    "tolerations",
    "priority_class_name",
    "runtime_class_name",
    "service_account_name",
    "image_pull_secrets",
}


def revision(spec: EnsembleSpec, digests: Mapping[str, str]) -> str:
    """Hash of all in the spec that a pod is made of, 10 hexadecimal digits.

    Fields with their default are left out, so that a field which a newer version adds changes nothing.

    Args:
        spec: The ensemble's.
        digests: Model digest of each member: another file at the same address is another revision.
    """
    # Batch sizes, kinds and objective work through the plan alone.
    fields = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        include={"inputs": True, "outputs": True, "combination": True, "serving": True, "placement": _PLACEMENT},
    )
    members = [
        member.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_MEMBER) for member in spec.members
    ]
    intent: dict[str, Any] = {
        "template": TEMPLATE,
        "members": members,
        "digests": {member.name: digests[member.name] for member in spec.members},
        **{name: value for name, value in fields.items() if value != {}},
    }
    return digest(intent, 10)


def copy_hash(plan: Plan, revision: str) -> str:
    """What tells one generation of a copy's pods from the next, 8 hexadecimal digits."""
    return digest([plan.digest, revision], 8)
