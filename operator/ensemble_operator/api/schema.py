"""From a pydantic model to the structural OpenAPI v3 schema that Kubernetes asks of a CRD."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel
from pydantic.config import JsonDict

SET: JsonDict = {"x-kubernetes-list-type": "set"}
"""Beside a list field: its items are distinct, and who applies some of them leaves the others."""

_DROPPED = (
    "title",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "default",
    "$ref",
    "$defs",
    "const",
)
_BOUNDS = {
    "minimum": (">=", "at least"),
    "exclusiveMinimum": (">", "more than"),
    "maximum": ("<=", "at most"),
    "exclusiveMaximum": ("<", "less than"),
}
_LAST = ("properties", "items", "required")


@dataclass(frozen=True, slots=True)
class Validation:
    """A rule that the API server checks, in CEL; `self` is a value of the model that it belongs to."""

    rule: str
    message: str
    path: str | None = None
    """The field that the refusal names, from the model's own place on, e.g. ``.members``."""
    reason: str = "FieldValueInvalid"

    def schema(self) -> dict[str, str]:
        """As ``x-kubernetes-validations`` has it."""
        found = {"rule": self.rule, "message": self.message, "reason": self.reason}
        return found | ({"fieldPath": self.path} if self.path else {})


Validations = Mapping[str, Sequence[Validation]]


def keyed_list(key: str) -> JsonDict:
    """Beside a list field: its items are told apart, and merged, by this field of theirs."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def structural(model: type[BaseModel], validations: Validations | None = None) -> dict[str, Any]:
    """The schema of a model: no references, no unions, no titles, unknown fields left to pruning.

    Optional fields are absent rather than null, as in Kubernetes. A default object is written as ``{}`` when its own
    fields have defaults: the API server fills those in.

    Args:
        model: The document.
        validations: CEL rules by the name of the model that they belong to, wherever it stands in the document.

    Raises:
        ValueError: The model holds what a structural schema cannot say, e.g. a union of two objects.
    """
    schema = model.model_json_schema()
    converted = _convert(schema, schema.get("$defs", {}), validations or {})
    return cast(dict[str, Any], json.loads(json.dumps(converted)))  # no part shared with another: YAML would say `*id1`


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Any], validations: Validations) -> dict[str, Any]:
    node = _resolve(node, definitions)
    out = {key: value for key, value in node.items() if key not in _DROPPED}
    rules = [*validations.get(node.get("title", ""), ())] if "properties" in node else [*_taken_fractions(out)]
    if rules:
        out["x-kubernetes-validations"] = [rule.schema() for rule in rules]
    if "const" in node:
        out["enum"] = [node["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in out:  # a number in JSON Schema, a flag beside the bound in OpenAPI v3.0
            out |= {bound: out[exclusive], exclusive: True}
    if node.get("default") is not None:
        out["default"] = {} if node["type"] == "object" else node["default"]
    if "properties" in node:
        out["properties"] = {
            name: _convert(child, definitions, validations) for name, child in node["properties"].items()
        }
    if "items" in node:
        out["items"] = _convert(node["items"], definitions, validations)
    for values in (node.get("additionalProperties"), *node.get("patternProperties", {}).values()):
        if isinstance(values, Mapping):  # what keys look like, a structural schema can only say in CEL
            out["additionalProperties"] = _convert(values, definitions, validations)
    return {key: out[key] for key in (*(k for k in sorted(out) if k not in _LAST), *(k for k in _LAST if k in out))}


def _taken_fractions(out: dict[str, Any]) -> Iterator[Validation]:
    """Rules in place of bounds with a fraction: the API server holds a whole number against their whole part alone."""
    for bound, (sign, words) in _BOUNDS.items():
        limit = out.get(bound)
        if limit is not None and limit != int(limit):
            del out[bound]
            yield Validation(f"self {sign} {limit!r}", f"expected {words} {limit!r}")


def _resolve(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references and drop the null of optional fields; what stands beside them wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _resolve({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node:
        choices = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
        if len(choices) != 1:
            raise ValueError(f"a structural schema has no union: {node['anyOf']}")
        return _resolve({**choices[0], **{key: value for key, value in node.items() if key != "anyOf"}}, definitions)
    return node
