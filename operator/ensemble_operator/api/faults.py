"""What pydantic found wrong, in words that tell a person what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from ensemble_operator.api.contradiction import KIND, Path
from ensemble_operator.api.document import Fault
from ensemble_operator.api.schema import structural

_SHOWN = 60
_PATTERNS = {
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-', with '-' at neither end",
    r"^[a-z]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-', beginning with a letter, no '-' at the end",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
    r"^[A-Za-z0-9_.:/-]+$": "letters, digits and _ . : / -",
    r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$": "letters, digits and _ . : -, beginning with a letter or digit",
    r"^[0-9a-f]{64}$": "64 lower-case hexadecimal digits, as sha256sum prints them",
    r"^[a-z][a-z0-9+.-]*://.+": "a URI such as file://./model.onnx, https://host/model.pt2 or s3://bucket/model.pt",
}
_KINDS = {
    "string_type": "text (in quotes if it looks like a number or a date)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Fault]:
    """One fault for each thing that is wrong with a document of this model."""
    schema = _schema(model)
    for detail in error.errors(include_url=False):
        path: Path = tuple(detail["loc"])
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # pydantic counts the items that passed; those that failed have their own faults
        if detail["type"] == KIND:
            for below, message in detail["ctx"]["faults"]:
                yield Fault((*path, *below), message)
        else:
            yield Fault(path, _message(detail, path, schema))


@cache
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    return structural(model)


def _message(detail: Mapping[str, Any], path: Path, schema: Mapping[str, Any]) -> str:
    kind, context, got = detail["type"], detail.get("ctx", {}), _show(detail["input"])
    if kind == "missing":
        purpose = _at(schema, path).get("description")
        return "missing" + (f"; expected: {purpose}" if purpose else "")
    if kind == "extra_forbidden":
        return _unknown_field(str(path[-1]), _at(schema, path[:-1]))
    if kind in ("enum", "literal_error"):
        return _one_of(
            detail["input"], [str(value) for value in _at(schema, path).get("enum", [])], context["expected"]
        )
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"got {got}, expected {_PATTERNS.get(pattern, f'text that matches {pattern}')}"
    if kind in _KINDS:
        return f"got {got}, expected {_KINDS[kind]}"
    if kind in _BOUNDS:
        return f"got {got}, expected {_BOUNDS[kind](context)}"
    if kind == "value_error":
        return str(context["error"])
    return f"got {got}: {detail['msg']}"


_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda c: f"more than {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']}",
    "less_than": lambda c: f"less than {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']}",
    "string_too_long": lambda c: f"at most {c['max_length']} characters",
    "too_short": lambda c: f"at least {c['min_length']} of them",
    "too_long": lambda c: f"at most {c['max_length']} of them",
}


def _one_of(got: object, choices: list[str], expected: str) -> str:
    message = f"got {_show(got)}, expected " + (f"one of {', '.join(choices)}" if len(choices) > 1 else expected)
    same = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(got).lower(), same, n=1)
    return message + (f"; did you mean {same[near[0]]}?" if near and len(choices) > 1 else "")


def _unknown_field(name: str, parent: Mapping[str, Any]) -> str:
    known = list(parent.get("properties", {}))
    same = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower().replace("_", ""), same, n=1)
    hint = f"did you mean `{same[near[0]]}`?" if near else f"expected one of {', '.join(known)}"
    return f"unknown field; {hint}"


def _at(schema: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The schema of the value at a path; empty where the schema says nothing."""
    for step in path:
        schema = schema.get("items", {}) if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    return schema


def _show(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "..."
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else json.dumps(value)
