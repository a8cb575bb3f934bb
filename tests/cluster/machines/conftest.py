"""A cluster with real nodes and the chart in it; `make test-e2e` runs these tests where they can run.

- `machines` (session): three nodes with two GPUs each that nobody has, Services, DNS, the project's images loaded as
  `localhost/ensemble-operator:test` and `localhost/ensemble-runtime:test-onnx`. `.plane` is its control plane with all
  that `control_plane` offers; `.nodes["node-2"]` can `kill()`, `start([])` again, and `break_gpus(uuid)`; `.add()`
  brings one more. `.enforcing()` is a network that enforces NetworkPolicies meanwhile.
- `cluster` (session): the chart in it, installed by real Helm; the operator is a pod on node-1, which no test may kill.
  `.plane`, `.chart` (`install()` again, with other values, is an upgrade), `.models` for `beds.models.ensemble`.
  At the end of the session nothing that the operator has asked for may have been forbidden.
- `serving` (session): an ensemble of three classifiers on the free core of node-1, ready. It stays as it is.
- `pair` (module): two copies of two classifiers, on all cores of node-2 and of node-3: nothing else has room there.
- `served` (function): makes more of them: `served("name", members=2, devices={...})`, in a fresh namespace that has
  their profiles, deleted afterwards. `apply(**spec)` applies and edits, `wait()` waits until it is ready,
  `predict(rows)` asks through the Service, `load()` is a steady load whose every answer is checked, `pods()` are its
  pods, `space` has its status. node-2 and node-3 are empty when a test begins, two cores each.
- `room` (function): a fresh namespace.

Where ENSEMBLES_TEST_KUBECONFIG names a cluster, the chart is installed there and the tests that need `machines` are
skipped; ENSEMBLES_TEST_OPERATOR_IMAGE and ENSEMBLES_TEST_RUNTIME_IMAGE say which images its nodes can pull.

A test that fails is followed by all that the cluster says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds import binaries, enclosure
from beds.access import Access
from beds.chart import Chart, images
from beds.cluster import Cluster
from beds.foreign import Foreign
from beds.machines import Machines
from beds.served import Served

KUBECONFIG = "ENSEMBLES_TEST_KUBECONFIG"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """After a failure, what the cluster says."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and report.when != "teardown" and isinstance(cluster, Cluster):
        report.sections.append(("the cluster", cluster.report()))
    return report


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A cluster that all tests of the session share; each takes a namespace of its own and mends what it breaks."""
    if KUBECONFIG in os.environ:
        pytest.skip(f"breaks nodes, or says what is on them: not in the cluster that {KUBECONFIG} names")
    if not enclosure.inside():
        why = enclosure.missing() or "real nodes start only in an enclosure: make test-e2e"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    programs = binaries.provide(enclosure.PROGRAMS, print)
    with Machines(programs, enclosure.archives(), tmp_path_factory.mktemp("machines") / "bed", count=3) as bed:
        yield bed


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign | None]:
    """The user's cluster, where one is named."""
    if KUBECONFIG not in os.environ:
        yield None
        return
    kubectl = binaries.provide(["kubectl"], print)["kubectl"]
    with Foreign(kubectl, Path(os.environ[KUBECONFIG]).absolute(), tmp_path_factory.mktemp("foreign")) as plane:
        yield plane


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, foreign: Foreign | None) -> Iterator[Cluster]:
    """The chart in the cluster."""
    helm = binaries.provide(["helm"], print)["helm"]
    if foreign is None:
        machines: Machines = request.getfixturevalue("machines")
        cluster = Cluster.installed(machines, helm)
        yield cluster
        asked = machines.plane.requests(cluster.chart.user)
        # In a namespace that ends nobody may make anything; that is no lack of rights.
        assert asked and not [one for one in asked if one.code == 403 and "being terminated" not in one.message]
        return
    operator, runtime = (os.environ[f"ENSEMBLES_TEST_{name}_IMAGE"] for name in ("OPERATOR", "RUNTIME"))
    chart = Chart(helm, foreign, values=images(operator, runtime))
    chart.install()
    namespace = foreign.namespace(enforce="restricted")
    yield Cluster(foreign, chart, foreign.hand_out_models(namespace, runtime), foreign.service_url)
    foreign.admin.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture(scope="session")
def serving(cluster: Cluster, foreign: Foreign | None) -> Iterator[Served]:
    """An ensemble that is ready."""
    placement = {} if foreign else {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}
    namespace = cluster.plane.namespace(enforce="restricted")
    ensemble = Served(cluster, namespace, "serving", devices={"kinds": ["CPU"], "max": 1}, placement=placement)
    ensemble.profiles()
    ensemble.apply()
    ensemble.wait()
    yield ensemble
    cluster.plane.admin.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture(scope="module")
def pair(machines: Machines, cluster: Cluster) -> Iterator[Served]:
    """Two copies, on node-2 and node-3."""
    namespace, devices = machines.plane.namespace(enforce="restricted"), machines.whole_nodes()
    ensemble = Served(cluster, namespace, "pair", 2, devices=devices, replicas=2)
    ensemble.profiles(f"cpu-{devices['cpuCoresPerDevice']}")
    ensemble.apply()
    ensemble.has(2)
    assert {pod["spec"]["nodeName"] for pod in ensemble.pods()} == {"node-2", "node-3"}
    yield ensemble
    ensemble.delete()


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
def room(request: pytest.FixtureRequest, foreign: Foreign | None) -> Iterator[str]:
    """A fresh namespace that enforces restricted pod security."""
    plane: Access = foreign or request.getfixturevalue("machines").plane
    name = plane.namespace(enforce="restricted")
    yield name
    plane.admin.delete(f"/api/v1/namespaces/{name}")
