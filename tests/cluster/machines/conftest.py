"""The cluster with real nodes as a fixture; `make test-e2e` runs these tests where they can run.

`machines` (session): two nodes with two GPUs each that nobody has, Services, DNS, the project's images loaded as
`localhost/ensemble-operator:test` and `localhost/ensemble-runtime:test-onnx`, and the CRDs. `.plane` is its control
plane with all that `control_plane` offers; `.nodes["node-1"]` can `kill()`, `start([])` again, and `break_gpus(uuid)`;
`.add()` brings one more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds import binaries, enclosure, images
from beds.machines import Machines

CRDS = Path(__file__).parents[3] / "crds"


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster that all tests of the session share; each takes a namespace of its own and mends what it breaks."""
    if not enclosure.inside():
        why = enclosure.missing() or "real nodes start only in an enclosure: make test-e2e"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    programs = binaries.provide(enclosure.PROGRAMS, print)
    archives = images.archives(images.PROJECT)
    with Machines(programs, archives, tmp_path_factory.mktemp("machines") / "bed") as bed:
        bed.plane.install_crds(CRDS)
        yield bed


@pytest.fixture
def room(machines: Machines) -> Iterator[str]:
    """A fresh namespace that enforces restricted pod security."""
    name = machines.plane.namespace(enforce="restricted")
    yield name
    machines.plane.admin.delete(f"/api/v1/namespaces/{name}")
