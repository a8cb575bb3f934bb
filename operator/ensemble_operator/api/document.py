"""YAML text to plain documents that remember their lines, with limits on all that the text can blow up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from ensemble_operator.api.contradiction import Path

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 200_000
MAX_DOCUMENTS = 1024

# The C reader where PyYAML was built with it: about ten times as fast, with the same result.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "value", "merge", "seq", "map")
}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_./-]+")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")  # JSON's, which YAML 1.1 takes for text


@dataclass(frozen=True)
class Fault:
    """One thing wrong, where it is, and what was expected instead."""

    path: Path
    message: str
    line: int | None = None
    """Line of the text, from 1."""

    def __str__(self) -> str:
        """As a person reads it: ``spec.members[2].model.format: got ...``."""
        return f"{spell(self.path)}: {self.message}" if self.path else self.message


def spell(path: Path) -> str:
    """A path as a person writes it, e.g. ``spec.members[2].name``."""
    text = ""
    for step in path:
        plain = isinstance(step, str) and _PLAIN_KEY.fullmatch(step)
        text += f".{step}" if plain else f"[{step!r}]"
    return text.removeprefix(".")


@dataclass(frozen=True)
class Document:
    """One YAML document as JSON would hold it. Empty fields are left out, as Kubernetes does."""

    value: object
    lines: Mapping[Path, int]
    faults: tuple[Fault, ...]

    def line(self, path: Path) -> int | None:
        """The line of a value, or of the nearest one around it."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)


def documents(text: str) -> Iterator[Document]:
    """Read the documents of a YAML text, leaving out empty ones.

    Raises:
        yaml.YAMLError: The text is no YAML.
        ValueError: It is larger, deeper or longer than a manifest may be.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ValueError(f"the text is larger than {MAX_BYTES >> 20} MiB, the most that a manifest may have")
    _bound_depth(text)
    loader = _Loader(text)
    try:
        for number in range(MAX_DOCUMENTS + 1):
            if not loader.check_node():
                return
            if number == MAX_DOCUMENTS:
                raise ValueError(f"more than {MAX_DOCUMENTS} documents in one text")
            walk = _Walk(loader)
            value = walk.value(cast(yaml.Node, loader.get_node()), ())
            if value is not None or walk.faults:
                yield Document(value, walk.lines, tuple(walk.faults))
    finally:
        loader.dispose()


def _bound_depth(text: str) -> None:
    """Refuse deep nesting before anything recurses over it."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {_line(event)}: nested deeper than {MAX_DEPTH} levels")


def _line(part: yaml.Node | yaml.Event) -> int:
    assert part.start_mark is not None  # it is only for parts that were not read from text
    return part.start_mark.line + 1


@dataclass
class _Walk:
    """One pass over the nodes of a document. Aliases are written out, so the budget counts what they expand to."""

    loader: yaml.SafeLoader
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def value(self, node: yaml.Node, path: Path) -> object:
        line = _line(node)
        self.lines.setdefault(path, line)
        if len(self.lines) > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ValueError(f"line {line}: more than {MAX_VALUES} values, or aliases that never end")
        if node.tag not in _TAGS:
            self._fault(path, f"the tag {node.tag} has no meaning here; remove it", node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        self._refuse_repeated_keys(node, path)
        self.loader.flatten_mapping(node)
        out: dict[str, object] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fault(path, "a key must be plain text", key)
                continue
            self.lines[(*path, key.value)] = _line(key)
            value = self.value(child, (*path, key.value))
            if value is not None:
                out[key.value] = value
        return out

    def _refuse_repeated_keys(self, node: yaml.MappingNode, path: Path) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    self._fault((*path, key.value), "written twice; keep one", key)
                seen.add(key.value)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        kind, text = node.tag.rpartition(":")[2], node.value
        value: Any = text  # dates too: Kubernetes reads them as text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on")
        if kind == "int":
            value = self.loader.construct_yaml_int(node)
        elif kind == "float":
            value = self.loader.construct_yaml_float(node)
        elif kind == "str" and not node.style and _NUMBER.fullmatch(text):
            value = float(text)
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(path, f"got {text}, expected a finite number", node)
            return 0.0
        return value

    def _fault(self, path: Path, message: str, node: yaml.Node) -> None:
        self.faults.append(Fault(path, message, _line(node)))
