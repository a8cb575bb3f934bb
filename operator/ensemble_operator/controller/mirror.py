"""Two processes that keep the same mapping: only what has changed travels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Delta(Generic[K, V]):
    """From one state of a mapping to the next."""

    changed: dict[K, V]
    gone: tuple[K, ...]


def difference(before: Mapping[K, V], now: Mapping[K, V]) -> Delta[K, V]:
    """What takes one mapping to the other."""
    changed = {key: value for key, value in now.items() if key not in before or not _same(before[key], value)}
    return Delta(changed, tuple(key for key in before if key not in now))


def _same(a: object, b: object) -> bool:
    """Identity first: most values are the very same object, and comparing those would take most of the time."""
    return a is b or a == b


def follow(mapping: dict[K, V], delta: Delta[K, V]) -> None:
    """Bring a mapping to the next state."""
    for key in delta.gone:
        mapping.pop(key, None)
    mapping.update(delta.changed)
