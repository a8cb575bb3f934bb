"""The CRDs in the repository are those of the models, and Kubernetes can take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_operator.api.crd import crds
from ensemble_operator.api.manifest import load_manifest
from ensemble_operator.cli.crd import main, render

CRDS = Path(__file__).parents[3] / "crds"
FORBIDDEN = {
    "$ref",
    "$defs",
    "definitions",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "prefixItems",
    "const",
    "title",
    "uniqueItems",
    "patternProperties",
    "propertyNames",
}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}.{key}")


def schemas() -> list[Any]:
    return [
        pytest.param(version["schema"]["openAPIV3Schema"], id=name)
        for name, crd in crds().items()
        for version in crd["spec"]["versions"]
    ]


def test_files_are_those_of_the_models() -> None:
    assert {path.name: path.read_text() for path in CRDS.glob("*.yaml")} == render()


def test_kubectl_can_apply_them_on_the_client() -> None:
    """It keeps the whole manifest in an annotation, and those have a limit."""
    assert all(len(text) < 200_000 for text in render().values())


def test_writing_them_again_gives_the_same_files(tmp_path: Path) -> None:
    main([str(tmp_path / "new")])
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == render()


@pytest.mark.parametrize("schema", schemas())
def test_every_node_is_structural(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        assert node.get("type") in ("object", "array", "string", "integer", "number", "boolean"), path
        assert not FORBIDDEN & set(node), path
        assert ("items" in node) == (node["type"] == "array"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert node.get("additionalProperties") is not False, path
        assert not isinstance(node.get("exclusiveMinimum"), float | int) or node["exclusiveMinimum"] is True, path
        assert not {"maxLength", "minLength", "pattern"} & set(node) or node["type"] == "string", path
        assert not {"maxItems", "minItems"} & set(node) or node["type"] == "array", path
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path


@pytest.mark.parametrize("schema", schemas())
def test_defaults_are_values_of_their_own_schema(schema: dict[str, Any]) -> None:
    python = {"object": dict, "array": list, "string": str, "integer": int, "number": float | int, "boolean": bool}
    for path, node in nodes(schema):
        if "default" in node:
            assert isinstance(node["default"], python[node["type"]]), path
            assert node["type"] != "object" or (node["default"] == {} and not node.get("required")), path
            assert "enum" not in node or node["default"] in node["enum"], path


@pytest.mark.parametrize("schema", schemas())
def test_keys_of_lists_are_required_fields(schema: dict[str, Any]) -> None:
    keyed = [(path, node) for path, node in nodes(schema) if node.get("x-kubernetes-list-type") == "map"]
    assert keyed
    for path, node in keyed:
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), path


@pytest.mark.parametrize("schema", schemas())
def test_users_find_every_field_of_the_spec_explained(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema["properties"]["spec"], "spec"):
        assert path.endswith((".items", ".additionalProperties")) or "description" in node, path


def test_the_root_restricts_only_the_name() -> None:
    for crd in crds().values():
        root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert root["properties"]["apiVersion"] == root["properties"]["kind"] == {"type": "string"}
        assert set(root["properties"]["metadata"]["properties"]) == {"name"}


def test_printer_columns_read_fields_that_exist() -> None:
    for crd in crds().values():
        version = crd["spec"]["versions"][0]
        paths = {path for path, _ in nodes(version["schema"]["openAPIV3Schema"])}
        for column in version["additionalPrinterColumns"]:
            path = column["jsonPath"].partition("[")[0]
            assert path in paths or path == ".metadata.creationTimestamp"


def test_names_are_as_announced() -> None:
    ensemble = crds()["inferenceensembles.yaml"]
    assert ensemble["metadata"]["name"] == "inferenceensembles.ensembles.dev"
    assert ensemble["spec"]["names"]["shortNames"] == ["ie"]
    assert ensemble["spec"]["names"]["categories"] == ["ensembles"]
    assert set(ensemble["spec"]["versions"][0]["subresources"]) == {"status", "scale"}


def test_defaults_of_the_schema_are_those_of_the_models(good: dict[str, Any]) -> None:
    """What the API server would fill in, given as a manifest, is what the models fill in by themselves."""
    schema = crds()["inferenceensembles.yaml"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    filled = fill(good, schema)
    assert filled != good
    assert load_manifest(yaml.safe_dump(filled), folder="/") == load_manifest(yaml.safe_dump(good), folder="/")


def fill(value: Any, schema: dict[str, Any]) -> Any:
    """Kubernetes' defaulting: absent fields that have a default get it, and so on below."""
    if isinstance(value, list):
        return [fill(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    given = {name: child["default"] for name, child in properties.items() if "default" in child} | value
    return {name: fill(item, properties.get(name, {})) for name, item in given.items()}
