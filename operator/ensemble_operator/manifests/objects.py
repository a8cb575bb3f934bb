"""The envelope that all objects of an ensemble have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_operator.api.ensemble import API_VERSION, InferenceEnsemble
from ensemble_operator.manifests.names import digest

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """The ensemble that objects belong to: the garbage collector deletes them with it."""

    name: str
    namespace: str
    uid: str

    @staticmethod
    def of(ensemble: InferenceEnsemble, uid: str) -> Owner:
        """The ensemble as an owner; its uid is not part of the manifest."""
        return Owner(ensemble.metadata.name, ensemble.metadata.namespace, uid)

    def metadata(self, name: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> Object:
        """Metadata of an object that the ensemble owns."""
        reference = {
            "apiVersion": API_VERSION,
            "kind": "InferenceEnsemble",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,  # true would need a right to update finalizers, and there are none to wait for
        }
        metadata: Object = {
            "name": name,
            "namespace": self.namespace,
            "labels": dict(labels),
            "ownerReferences": [reference],
        }
        return metadata | ({"annotations": dict(annotations)} if annotations else {})


def config_map(metadata: Object, data: Mapping[str, str]) -> Object:
    """An immutable ConfigMap: kubelets need not watch it."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": dict(data)}


def content_hash(data: Mapping[str, str]) -> str:
    """Hash of a ConfigMap's content, for its name."""
    return digest(dict(data), 10)
