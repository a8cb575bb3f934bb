"""A cluster with real nodes and the chart in it; `make test-e2e` runs these tests where they can run.

- `machines` (session): three nodes with two GPUs each that nobody has, Services, DNS, the project's images loaded as
  `localhost/ensemble-operator:test` and `localhost/ensemble-runtime:test-onnx`. `.plane` is its control plane with all
  that `control_plane` offers; `.nodes["node-2"]` can `kill()`, `start([])` again, and `break_gpus(uuid)`; `.add()`
  brings one more.
- `cluster` (session): the chart in it, installed by real Helm; the operator is a pod on node-1, which no test may kill.
  `.plane`, `.chart` (`install()` again, with other values, is an upgrade), `.models` for `beds.models.ensemble`.
  At the end of the session nothing that the operator has asked for may have been forbidden.
- `serving` (session): an ensemble of three classifiers on the free core of node-1, ready. It stays as it is.
- `served` (function): makes more of them: `served("name", members=2, devices={...})`, in a fresh namespace that has
  their profiles, deleted afterwards. `apply(**spec)` applies and edits, `wait()` waits until it is ready,
  `predict(rows)` asks through the Service, `load()` is a steady load whose every answer is checked, `pods()` are its
  pods, `space` has its status. node-2 and node-3 are empty when a test begins, two cores each.
- `room` (function): a fresh namespace.

A test that fails is followed by all that the cluster says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from beds import binaries, enclosure
from beds.chart import Chart
from beds.cluster import Cluster
from beds.machines import Machines
from beds.served import Served


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """After a failure, what the cluster says."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("the cluster", cluster.report()))
    return report


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster that all tests of the session share; each takes a namespace of its own and mends what it breaks."""
    if not enclosure.inside():
        why = enclosure.missing() or "real nodes start only in an enclosure: make test-e2e"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    programs = binaries.provide(enclosure.PROGRAMS, print)
    with Machines(programs, enclosure.archives(), tmp_path_factory.mktemp("machines") / "bed", count=3) as bed:
        yield bed


@pytest.fixture(scope="session")
def cluster(machines: Machines) -> Iterator[Cluster]:
    """The chart in the cluster."""
    plane = machines.plane
    chart = Chart(
        binaries.provide(["helm"], print)["helm"],
        plane,
        values={"nodeSelector.kubernetes\\.io/hostname": "node-1"},
    )
    chart.install()
    yield Cluster(plane, chart, machines.models.url, machines.service_url)
    asked = plane.requests(chart.user)
    assert asked and not [request for request in asked if request.code == 403]


@pytest.fixture(scope="session")
def serving(cluster: Cluster) -> Served:
    """An ensemble that is ready."""
    placement = {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}
    namespace = cluster.plane.namespace(enforce="restricted")
    ensemble = Served(cluster, namespace, "serving", devices={"kinds": ["CPU"], "max": 1}, placement=placement)
    ensemble.profiles()
    ensemble.apply()
    ensemble.wait()
    return ensemble


@pytest.fixture
def served(cluster: Cluster, room: str) -> Iterator[Callable[..., Served]]:
    """Makes ensembles."""
    made: list[Served] = []

    def make(name: str, members: int = 2, **spec: object) -> Served:
        ensemble = Served(cluster, room, name, members, **spec)
        if not made:
            ensemble.profiles()
        made.append(ensemble)
        return ensemble

    yield make
    for ensemble in made:
        ensemble.delete()


@pytest.fixture
def room(machines: Machines) -> Iterator[str]:
    """A fresh namespace that enforces restricted pod security."""
    name = machines.plane.namespace(enforce="restricted")
    yield name
    machines.plane.admin.delete(f"/api/v1/namespaces/{name}")
