"""Ensembles served by pods on real nodes, through their Services."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from beds.binaries import provide
from beds.chart import Chart
from beds.client import Manifest
from beds.cluster import Cluster
from beds.machines import Machines
from beds.models import CLASSIFIERS, COLUMNS, member
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ROWS = np.linspace(-2, 2, 50 * COLUMNS, dtype=np.float32).reshape(50, COLUMNS)


def on_nodes(served: Served) -> dict[str, str]:
    """The role of each pod by its node."""
    return {pod["spec"]["nodeName"]: pod["metadata"]["labels"]["ensembles.dev/role"] for pod in served.pods()}


def test_an_ensemble_on_one_node_answers_as_its_members_do_here(serving: Served) -> None:
    assert serving.right(ROWS, serving.predict(ROWS))
    assert list(on_nodes(serving).values()) == ["head"]
    (row,) = serving.space.status(serving.name)["matrix"]
    assert {cell["member"] for cell in row["cells"]} == {"net-0", "net-1", "net-2"}


def test_an_ensemble_that_spans_two_nodes_answers_as_its_members_do_here(
    machines: Machines, served: Callable[..., Served]
) -> None:
    """A device is a whole node here, and each member takes more than half of what comes with it."""
    node = machines.nodes["node-2"]
    cores, kib = node.allocatable("cpu"), node.allocatable("memory")
    wide = served("wide", 2, devices={"kinds": ["CPU"], "cpuCoresPerDevice": cores})
    wide.profiles(f"cpu-{cores}", memory_mib=0.6 * kib / 1024)
    wide.apply()
    wide.wait()
    assert on_nodes(wide).keys() == {"node-2", "node-3"} and set(on_nodes(wide).values()) == {"head", "shard"}
    assert wide.right(ROWS, wide.predict(ROWS))
    with wide.load() as load:
        load.more()
    assert not load.failures, load.summary()


def test_members_come_from_a_volume(machines: Machines, served: Callable[..., Served]) -> None:
    digits, admin = served("digits", 2), machines.plane.admin
    namespace = digits.space.namespace
    size, modes = {"storage": "1Gi"}, ["ReadOnlyMany"]
    volume: Manifest = {
        "capacity": size,
        "accessModes": modes,
        "storageClassName": "",
        "hostPath": {"path": str(machines.models.folder)},
        "claimRef": {"namespace": namespace, "name": "models"},
    }
    claim = {"accessModes": modes, "storageClassName": "", "volumeName": namespace, "resources": {"requests": size}}
    admin.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume})
    meta = {"name": "models", "namespace": namespace}
    admin.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim})
    digits.apply(members=[member("pvc://models", one) for one in CLASSIFIERS[:2]])
    digits.wait()
    assert digits.right(ROWS, digits.predict(ROWS))
    digits.delete()
    admin.delete(f"/api/v1/persistentvolumes/{namespace}")


def test_the_operator_is_upgraded_while_an_ensemble_serves(cluster: Cluster, serving: Served) -> None:
    before = serving.containers()
    with serving.load() as load:
        load.more()
        cluster.chart.install({"podAnnotations.upgraded": "yes", "runtime.onnx.tag": "newer"})
        load.more()
        cluster.chart.install()
        load.more()
    assert not load.failures, load.summary()
    assert serving.containers() == before


def test_an_operator_of_one_namespace_serves(cluster: Cluster, serving: Served, room: str) -> None:
    """Ensembles of all namespaces serve on while the cluster's own operator is away."""
    node = cluster.plane.admin.items("/api/v1/nodes")[-1]["metadata"]["name"]
    stated = [{"name": node, "cores": 2, "memoryMib": 16_384}]  # its own pod may be there, and take a part of a core
    scoped = Chart(provide(["helm"], print)["helm"], cluster.plane, room, "scoped", {"scope": "Namespace"})
    with cluster.chart.paused(), serving.load() as load:
        scoped.install(flags=("--set", "crds.install=false", "--set-json", f"inventory.static={json.dumps(stated)}"))
        small = Served(cluster, room, "small", 2)
        small.profiles()
        small.apply()
        small.wait()
        assert small.right(ROWS, small.predict(ROWS))
        small.delete()
        scoped.helm("uninstall", "scoped")
    assert not load.failures, load.summary()
