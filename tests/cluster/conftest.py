"""Real Kubernetes as fixtures. What each offers is said in `beds/`; nothing here needs root.

- `control_plane` (session): etcd, API server with RBAC and an audit log, controller manager, scheduler, and the CRDs of
  `crds/`. `.admin` is a client (`get`, `items`, `create`, `apply`, `merge`, `delete`), `.kubectl("get", "ie")` the real
  kubectl, `.namespace(enforce="restricted")` a fresh namespace, `.kubeconfig(token)` a file for an operator,
  `.service_account(namespace, name)` a token with only the rights given to it, `.requests(user, since=mark)` what the
  audit log says, `.restart_apiserver()`, `.without_apiserver()` and `.held(plane.etcd)` make faults.
- `kwok` (session): the same control plane with KWOK, which plays nodes and the pods on them; `.add(gpu_node(...))`.
- `helm` (session): the chart through real Helm, `promtool` a program; neither needs a cluster.
- `beds.faults.FaultyProxy(plane.url, plane.ca)`: what an operator talks to instead, to be refused and cut off.
- `namespace`: a fresh namespace of the control plane, deleted afterwards.
- `space` (function): such a namespace where the real `operator` (module) looks, with profiles of the members a, b, c.
  The test's module says on what: `NODES` are the nodes that KWOK plays for it (`nodes`), `COSTS` what its members cost
  and `SETTINGS` those of its operator, where they are not the usual ones.

Programs are built once, before the first test; tests that need some which cannot be built here are skipped with one
line, except where `CI=true`, where they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.binaries import CONTROL_PLANE, missing, provide
from beds.controlplane import ControlPlane
from beds.helm import Helm
from beds.kwok import Kwok
from beds.operating import Operator, Space

CRDS = Path(__file__).parents[2] / "crds"
PROGRAMS = {
    "control_plane": CONTROL_PLANE,
    "kwok": (*CONTROL_PLANE, "kwok"),
    "helm": ("helm",),
    "promtool": ("promtool",),
    "kubeconform": ("kubeconform",),
}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the collected tests need; here because no test's time-out runs yet."""
    if session.config.option.collectonly:
        return
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    wanted = {program for fixture, programs in PROGRAMS.items() if fixture in used for program in programs}
    if not missing(wanted):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        provide(sorted(wanted), reporter.write_line if reporter else print)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that all tests of the session share; each takes a namespace of its own."""
    with ControlPlane(_programs("control_plane"), tmp_path_factory.mktemp("control-plane")) as plane:
        plane.install_crds(CRDS)
        yield plane


@pytest.fixture(scope="session")
def kwok(control_plane: ControlPlane) -> Iterator[Kwok]:
    """KWOK beside the control plane; tests delete the nodes that they add."""
    with Kwok(_programs("kwok")["kwok"], control_plane) as bed:
        yield bed


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Real Helm with the chart."""
    return Helm(_programs("helm")["helm"], tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' tool that checks rules."""
    return _programs("promtool")["promtool"]


@pytest.fixture(scope="session")
def kubeconform() -> Path:
    """A program that checks objects against schemas."""
    return _programs("kubeconform")["kubeconform"]


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace."""
    name = control_plane.namespace()
    yield name
    control_plane.admin.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest, kwok: Kwok) -> Iterator[list[str]]:
    """The names of the module's nodes."""
    names = kwok.add(*request.module.NODES)
    yield names
    kwok.remove(names)


@pytest.fixture(scope="module")
def operator(request: pytest.FixtureRequest, kwok: Kwok, nodes: list[str]) -> Iterator[Operator]:
    """The operator beside the control plane; it is there before the first ensemble."""
    with Operator(kwok.plane, **getattr(request.module, "SETTINGS", {})) as running:
        yield running


@pytest.fixture
def space(request: pytest.FixtureRequest, kwok: Kwok, operator: Operator, namespace: str) -> Iterator[Space]:
    """A namespace of a test's own, whose ensembles are gone when it ends."""
    found = Space(kwok.plane, namespace)
    found.profiles("a", "b", "c", **getattr(request.module, "COSTS", {}))
    yield found
    found.clear()


def _programs(fixture: str) -> dict[str, Path]:
    programs = PROGRAMS[fixture]
    if why := missing(programs):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    return provide(programs, print)
