"""The Services of an ensemble: the one that users know, and the one through which shards find each other."""

from __future__ import annotations

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import shards_name
from ensemble_operator.manifests.objects import Object, Owner
from ensemble_operator.manifests.runtime_config import PORT


def service(owner: Owner, revision: str) -> Object:
    """The Service of an ensemble, under its own name: never made anew, so that its address stays.

    Args:
        owner: The ensemble.
        revision: Its heads get the requests. Plans of one revision give the same answers, so that one plan can take
            the place of another copy by copy; to switch from one revision to the next is to apply this anew.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(owner.name, labels.common(owner.name)),
        "spec": {
            "type": "ClusterIP",
            "selector": labels.heads(owner.name) | {labels.REVISION: revision},
            "ports": [_PORT],
        },
    }


def shards_service(owner: Owner) -> Object:
    """The headless Service that gives each shard a name: ``<pod>.<ensemble>-shards``, also before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(shards_name(owner.name), labels.common(owner.name)),
        "spec": {
            "clusterIP": "None",
            "selector": {labels.ENSEMBLE: owner.name},
            "publishNotReadyAddresses": True,
            "ports": [_PORT],
        },
    }


def endpoint(owner: Owner) -> str:
    """Where the ensemble answers within the cluster."""
    return f"http://{owner.name}.{owner.namespace}.svc:{PORT}"


_PORT = {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}
