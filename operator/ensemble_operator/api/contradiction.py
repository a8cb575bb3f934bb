"""Faults that lie between fields, carried through pydantic with the path of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import AfterValidator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

KIND = "contradiction"

Path = tuple[str | int, ...]


def refuse(faults: Iterable[tuple[Path, str]]) -> None:
    """Raise one error that carries all faults; do nothing when there is none.

    Args:
        faults: Path, relative to the value under validation, and message of each.

    Raises:
        PydanticCustomError: Of type `KIND`; its context holds the faults.
    """
    found = [(tuple(path), message) for path, message in faults]
    if found:
        text = "; ".join(message for _, message in found)
        raise PydanticCustomError(KIND, "{text}", {"text": text, "faults": found})


def distinct(attribute: str | None = None) -> AfterValidator:
    """A validator of lists: no two items alike, or alike in one attribute."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        refuse(_repeated([item if attribute is None else getattr(item, attribute) for item in items], attribute))
        return items

    return AfterValidator(check)


def _repeated(values: list[Any], attribute: str | None) -> Iterable[tuple[Path, str]]:
    first: dict[object, int] = {}
    for i, value in enumerate(values):
        if value in first:
            path: Path = (i,) if attribute is None else (i, to_camel(attribute))
            yield (
                path,
                f"got '{getattr(value, 'value', value)}', which entry {first[value]} has too; expected distinct ones",
            )
        first.setdefault(value, i)
