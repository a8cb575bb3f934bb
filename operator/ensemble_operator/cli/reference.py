"""Prints docs/api.md, the reference of every field: ``python -m ensemble_operator.cli.reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ensemble_operator.api.crd import crds

_HEADER = """\
# API reference

Every field of the custom resources, generated from `operator/ensemble_operator/api` by `make crds`.
[manifest.md](manifest.md) explains the fields of `spec` with examples, [operations.md](operations.md) those of
`status`.
"""
_BOUNDS = (
    ("minimum", "≥ {}"),
    ("maximum", "≤ {}"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("maxProperties", "at most {} entries"),
)

Node = Mapping[str, Any]


def render() -> str:
    """The whole page."""
    return "\n".join([_HEADER, *(line for crd in crds().values() for line in _resource(crd))])


def _resource(crd: Node) -> Iterator[str]:
    spec = crd["spec"]
    names, version = spec["names"], spec["versions"][0]
    yield f"## {names['kind']}"
    yield ""
    yield f"`{spec['group']}/{version['name']}`, {spec['scope'].lower()}; `kubectl get {names['shortNames'][0]}`."
    yield ""
    schema = version["schema"]["openAPIV3Schema"]
    for part in ("spec", "status"):
        if part in schema["properties"]:
            yield "| field | type | default | meaning |"
            yield "| --- | --- | --- | --- |"
            for path, node, required in _fields(part, schema["properties"][part]):
                cells = (f"`{path}`", _type(node), _default(node, required=required), _meaning(node))
                yield f"| {' | '.join(cells)} |"
            yield ""
            rules = [rule for _, rule in _rules(part, schema["properties"][part])]
            if rules:
                yield "Besides:"
                yield ""
                yield from (f"- {rule}" for rule in rules)
                yield ""


def _fields(path: str, node: Node) -> Iterator[tuple[str, Node, bool]]:
    """Every field below a node, parents first."""
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child, name in required
        yield from _fields(f"{path}.{name}[]" if "items" in child else f"{path}.{name}", child.get("items", child))


def _rules(path: str, node: Node) -> Iterator[tuple[str, str]]:
    """What holds between fields, by where it is said."""
    for rule in node.get("x-kubernetes-validations", ()):
        yield path, f"`{path}`: {_cell(rule.get('message', rule['rule']))}"
    for name, child in node.get("properties", {}).items():
        yield from _rules(f"{path}.{name}", child)
    if "items" in node:
        yield from _rules(f"{path}[]", node["items"])


def _type(node: Node) -> str:
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    if "items" in node:
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), Mapping):
        return f"map of {_type(node['additionalProperties'])}"
    return str(node.get("format") or node.get("type", "any"))


def _default(node: Node, *, required: bool) -> str:
    if required:
        return "required"
    if "default" not in node or node["default"] == {}:
        return ""
    return f"`{node['default']}`"


def _meaning(node: Node) -> str:
    bounds = [text.format(node[key]) for key, text in _BOUNDS if key in node]
    return _cell(node.get("description", "")) + (f" ({'; '.join(bounds)})" if bounds else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
