"""Nodes that are emptied, and the operator's own that dies: nobody who asks notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from beds.chart import SELECTOR
from beds.cluster import OPERATORS, Cluster
from beds.machines import Machines
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ONE_CORE = {"kinds": ["CPU"], "max": 1}
DRAIN = ("drain", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=55s")


def nodes(served: Served) -> list[str]:
    return sorted(pod["spec"]["nodeName"] for pod in served.pods())


@pytest.mark.usefixtures("serving")  # on node-1, which has no other core to give
def test_a_drained_node_fails_no_request_though_both_copies_are_there(
    machines: Machines, served: Callable[..., Served]
) -> None:
    """The budget lets the second copy go only when the first serves elsewhere."""
    two, plane = served("two", devices=ONE_CORE, replicas=2), machines.plane
    plane.kubectl("cordon", "node-2")
    try:
        two.apply()
        two.has(2)
        plane.kubectl("uncordon", "node-2")
        assert nodes(two) == ["node-3", "node-3"]
        with two.load() as load:
            load.more()
            plane.kubectl(*DRAIN, "node-3")
            two.has(2)
            assert nodes(two) == ["node-2", "node-2"]
            load.more()
    finally:
        plane.kubectl("uncordon", "node-2", "node-3")
    assert not load.failures, load.summary()


def operator(cluster: Cluster) -> tuple[str, str]:
    """Uid and node of the operator's pod that is ready, and not on its way out; of none, nothing."""
    label = SELECTOR[1]
    for pod in cluster.plane.admin.items(f"/api/v1/namespaces/{cluster.chart.namespace}/pods", labelSelector=label):
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
        if ready and "deletionTimestamp" not in pod["metadata"]:
            return pod["metadata"]["uid"], pod["spec"]["nodeName"]
    return "", ""


def test_an_operator_whose_node_dies_goes_on_elsewhere(
    machines: Machines, cluster: Cluster, serving: Served, served: Callable[..., Served]
) -> None:
    """Brought to node-3 first; everything else stays where it is."""
    plane, namespace, before = machines.plane, cluster.chart.namespace, serving.containers()
    plane.kubectl("label", "node", "node-3", f"{OPERATORS}=yes")
    plane.kubectl("label", "node", "node-1", f"{OPERATORS}-")
    plane.kubectl("delete", "pods", *SELECTOR, namespace=namespace)
    wait_for(lambda: operator(cluster)[1] == "node-3", "the operator on node-3")
    plane.kubectl("label", "node", "node-3", f"{OPERATORS}-")
    plane.kubectl("label", "node", "node-1", f"{OPERATORS}=yes")
    with serving.load() as load:
        load.more()
        killed = load.now
        with machines.nodes["node-3"].off():
            wait_for(lambda: operator(cluster)[1] == "node-1", "the operator on node-1")
            print(f"the operator's node died: another is ready after {load.now - killed:.1f} s")
            late = served("late", devices=ONE_CORE)
            late.apply()
            late.wait()
            load.more()
    assert nodes(late) == ["node-2"]
    assert not load.failures, load.summary()
    assert serving.containers() == before
