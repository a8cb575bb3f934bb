"""What is created for an ensemble, on a real API server that enforces restricted pod security."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.controlplane import ControlPlane

pytestmark = pytest.mark.timeout(300)  # the first test starts the control plane
GOLDEN = sorted((Path(__file__).parents[1] / "unit" / "manifests" / "golden").glob("*.yaml"))


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> str:
    return control_plane.namespace(enforce="restricted")


def objects(file: Path, namespace: str) -> list[dict[str, Any]]:
    """A golden file's objects; what only the objects of a user or of a cluster give them is made to fit."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all(file.read_text()))
    for o in found:
        o["metadata"]["namespace"] = namespace
        if o["kind"] == "Pod":
            for field in ("priorityClassName", "runtimeClassName", "serviceAccountName"):
                o["spec"].pop(field, None)  # they name objects that are not there
    return found


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_every_object_is_taken_as_it_is(control_plane: ControlPlane, restricted: str, file: Path) -> None:
    for o in objects(file, restricted):
        made = control_plane.admin.create(o, dryRun="All", fieldValidation="Strict")
        assert contains(made, o), o["kind"]


def contains(whole: Any, part: Any) -> bool:
    """Whether nothing of a part was dropped or changed; the API server may add."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        if len(part) > len(whole):
            return False
        return all(any(contains(candidate, item) for candidate in whole) for item in part)
    return bool(whole == part)
