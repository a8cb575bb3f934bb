"""What decisions are made from: everything that was seen, by kinds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ensemble_operator.controller.edition_record import EditionRecord
from ensemble_operator.controller.records import EnsembleRecord, OwnPod, PodRecord, ProfileRecord
from ensemble_operator.controller.resources import (
    CLAIMS,
    CONFIG_MAPS,
    ENSEMBLES,
    NODES,
    PODS,
    PROFILES,
    REVISIONS,
    SLICES,
)
from ensemble_operator.inventory.static import StaticInventory, static_inventory
from ensemble_runtime.errors import EnsembleError

GIVEN_UP = ("", "given-up")
"""Key of what was told of profiling: namespace and name of a pod that is not tried now -> why."""

Key = tuple[str, str]
"""Namespace and name."""
State = Mapping[Any, Any]
"""Records by (kind, namespace, name), and what was told of profiling."""


class World:
    """The state by kinds."""

    def __init__(self, state: State) -> None:
        """Sort out a state."""
        kinds: dict[str, dict[Key, Any]] = defaultdict(dict)
        for key, record in state.items():
            if key != GIVEN_UP:
                kinds[key[0]][key[1], key[2]] = record
        self.ensembles: dict[Key, EnsembleRecord] = kinds[ENSEMBLES.plural]
        self.nodes = tuple(kinds[NODES.plural].values())
        self.pods: dict[Key, PodRecord] = kinds[PODS.plural]
        self.own_pods: dict[str, dict[str, OwnPod]] = defaultdict(dict)
        for (namespace, name), pod in self.pods.items():
            if pod.own is not None:
                self.own_pods[namespace][name] = pod.own
        self.uses = tuple(pod.use for pod in self.pods.values() if pod.use is not None)
        self.slices = tuple(kinds[SLICES.plural].values())
        self.claims = tuple(kinds[CLAIMS.plural].values())
        self.given_up: dict[str, dict[str, str]] = defaultdict(dict)
        for (namespace, pod), why in state.get(GIVEN_UP, {}).items():
            self.given_up[namespace][pod] = why
        profiles: dict[str, list[ProfileRecord]] = defaultdict(list)
        for (namespace, _), profile in sorted(kinds[PROFILES.plural].items()):
            profiles[namespace].append(profile)
        self.profiles = {namespace: tuple(found) for namespace, found in profiles.items()}
        self.editions: dict[str | None, list[EditionRecord]] = defaultdict(list)
        """By the uid of their ensemble."""
        for edition in kinds[REVISIONS.plural].values():
            self.editions[edition.owner].append(edition)
        self.static, self.fault = _static(kinds[CONFIG_MAPS.plural])


def _static(maps: Mapping[Key, Mapping[str, str]]) -> tuple[StaticInventory | None, str | None]:
    for (namespace, name), data in maps.items():
        try:
            return static_inventory(data, f"ConfigMap {namespace}/{name}"), None
        except EnsembleError as error:
            return StaticInventory({}), str(error)
    return None, None
