"""The CustomResourceDefinitions, from the models. ``python -m ensemble_operator.cli.crd`` writes them to files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ensemble_operator.api.ensemble import API_VERSION, InferenceEnsemble
from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.api.schema import structural
from ensemble_operator.api.validations import VALIDATIONS

GROUP, VERSION = API_VERSION.split("/")
CATEGORY = "ensembles"


def crds() -> dict[str, dict[str, Any]]:
    """Every CRD, by the name of its file."""
    return {
        "inferenceensembles.yaml": _crd(
            InferenceEnsemble,
            "inferenceensembles",
            ["ie"],
            _ENSEMBLE_COLUMNS,
            subresources={"status": {}, "scale": _SCALE},
        ),
        "modelprofiles.yaml": _crd(ModelProfile, "modelprofiles", ["mp"], _PROFILE_COLUMNS, subresources={}),
    }


def _column(name: str, kind: str, path: str, *, wide: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path} | ({"priority": 1} if wide else {})


_AGE = _column("Age", "date", ".metadata.creationTimestamp")
_ENSEMBLE_COLUMNS = [
    _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
    _column("Members", "string", ".status.members"),
    _column("Devices", "integer", ".status.devices"),
    _column("Nodes", "integer", ".status.nodes"),
    _column("Rate", "number", ".status.rate"),
    _AGE,
    _column("Plan", "string", ".status.plan", wide=True),
    _column("Bottleneck", "string", ".status.bottleneck", wide=True),
    _column("Reason", "string", ".status.reason", wide=True),
]
_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
_PROFILE_COLUMNS = [
    _column("Device", "string", ".spec.deviceType"),
    _column("Precision", "string", ".spec.precision"),
    _column("Model", "string", ".spec.model.sha256", wide=True),
    _AGE,
]


def _crd(
    model: type[BaseModel],
    plural: str,
    short: list[str],
    columns: list[dict[str, Any]],
    *,
    subresources: dict[str, Any],
) -> dict[str, Any]:
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(structural(model, VALIDATIONS))},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": model.__name__,
                "listKind": f"{model.__name__}List",
                "plural": plural,
                "singular": model.__name__.lower(),
                "shortNames": short,
                "categories": [CATEGORY],
            },
            "versions": [version | ({"subresources": subresources} if subresources else {})],
        },
    }


def _root(schema: dict[str, Any]) -> dict[str, Any]:
    """At its root a CRD may say no more of apiVersion and kind than their type, and of metadata than the name."""
    name = schema["properties"]["metadata"]["properties"]["name"]
    fixed: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "properties": {"name": name}},
    }
    return schema | {"properties": schema["properties"] | fixed, "required": ["spec"]}
