"""Who may talk to the shards of an ensemble: its own heads, and nobody else. The token says so a second time."""

from __future__ import annotations

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import shards_name
from ensemble_operator.manifests.objects import Object, Owner
from ensemble_operator.manifests.runtime_config import PORT


def shards_policy(owner: Owner) -> Object:
    """A NetworkPolicy for the shards that are not heads; it counts where the cluster's network enforces such."""
    peers = {"podSelector": {"matchLabels": labels.heads(owner.name)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owner.metadata(shards_name(owner.name), labels.common(owner.name)),
        "spec": {
            "podSelector": {"matchLabels": {labels.ENSEMBLE: owner.name, labels.ROLE: labels.REMOTE}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peers], "ports": [{"protocol": "TCP", "port": PORT}]}],
        },
    }
