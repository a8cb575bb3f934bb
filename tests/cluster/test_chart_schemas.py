"""The chart's objects against the schemas that the API server publishes of itself, by kubeconform."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.controlplane import ControlPlane
from beds.helm import Helm
from test_chart_rendering import VALUES

NOT_KUBERNETES = "ServiceMonitor,PodMonitor,PrometheusRule"


@pytest.fixture(scope="module")
def schemas(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a schema for each kind, as kubeconform looks for them."""
    folder = tmp_path_factory.mktemp("schemas")
    definitions = control_plane.admin.get("/openapi/v2")["definitions"]
    for definition in definitions.values():
        _close(definition)
    whole = folder / "definitions.json"
    whole.write_text(json.dumps({"definitions": definitions}))
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group = kind["group"] or kind["version"]  # which is how kubeconform reads `v1` alone
            file = folder / f"{kind['kind'].lower()}-{group}-{kind['version']}.json"
            file.write_text(json.dumps({"$ref": f"file://{whole}#/definitions/{name}"}))
    return folder


def _close(schema: dict[str, Any]) -> None:
    """What JSON Schema knows not of OpenAPI, in its words: a number or a string; no field but those named."""
    if schema.get("format") == "int-or-string" or schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for below in schema.get("properties", {}).values():
        _close(below)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _close(schema[key])


def checked(kubeconform: Path, schemas: Path, objects: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    where = f"{schemas}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"
    command = [kubeconform, "-strict", "-summary", "-skip", NOT_KUBERNETES, "-schema-location", where, "-"]
    return subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_as_kubernetes_describes_it(
    helm: Helm, kubeconform: Path, schemas: Path, values: dict[str, Any]
) -> None:
    result = checked(kubeconform, schemas, helm.template(values))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_slip_of_the_pen_is_found(kubeconform: Path, schemas: Path) -> None:
    meta = {"name": "x"}
    for spec in ({"clusterIp": "None"}, {"ports": [{"port": "http"}]}):
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        assert checked(kubeconform, schemas, [service]).returncode == 1
