"""The PodDisruptionBudget of an ensemble with several copies: a drained node takes one copy at a time."""

from __future__ import annotations

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.objects import Object, Owner


def budget(owner: Owner, copies: int) -> Object | None:
    """All heads but one have to stay; None for a single copy, which would keep its node from ever being drained."""
    if copies < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owner.metadata(owner.name, labels.common(owner.name)),
        "spec": {
            "minAvailable": copies - 1,
            "selector": {"matchLabels": labels.heads(owner.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
