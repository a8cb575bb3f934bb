"""Processes, containers and nodes that die under the load of an ensemble of two copies, one on a node each."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from beds.cluster import Cluster
from beds.load import Load
from beds.machines import Machines
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ONE_CORE = {"kinds": ["CPU"], "max": 1}
Pod = dict[str, Any]


@pytest.fixture(scope="module")
def pair(cluster: Cluster, serving: Served) -> Iterator[Served]:
    """Two copies, on node-2 and node-3: node-1 has no room beside `serving`."""
    ensemble = Served(cluster, cluster.plane.namespace(enforce="restricted"), "pair", 2, devices=ONE_CORE, replicas=2)
    ensemble.profiles()
    ensemble.apply()
    has_ready(ensemble, 2)
    assert {pod["spec"]["nodeName"] for pod in ensemble.pods()} == {"node-2", "node-3"}
    yield ensemble
    ensemble.delete()


def has_ready(ensemble: Served, copies: int) -> None:
    """Wait until so many copies serve, and no other pod is there."""

    def so() -> bool:
        status = ensemble.space.status(ensemble.name)
        return status.get("readyReplicas") == copies and len(ensemble.space.items("pods", ensemble.name)) == copies

    wait_for(so, f"{copies} copies of {ensemble.name}", 120)


def samples(pod: Pod, metric: str) -> list[tuple[str, float]]:
    """Labels and values of a metric of a pod."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [(labels, float(value)) for labels, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.MULTILINE)]


def on(ensemble: Served, node: str) -> Pod:
    """The pod on a node."""
    (pod,) = (pod for pod in ensemble.pods() if pod["spec"]["nodeName"] == node)
    return pod


def hurt_only(load: Load, pod: Pod) -> bool:
    """Whether all that failed was on its way to one pod, and nothing was answered wrongly."""
    led_to = {failure.led_to for failure in load.failures}
    return led_to <= {pod["status"]["podIP"]} and not any("wrong answer" in f.reason for f in load.failures)


def test_a_killed_process_fails_no_request(machines: Machines, pair: Served) -> None:
    pod, before = on(pair, "node-2"), pair.containers()
    (number,) = (
        int(found[1])
        for labels, _ in samples(pod, "ensemble_process_resident_bytes")
        if "net-1@" in labels and (found := re.search(r'pid="(\d+)"', labels))
    )
    with pair.load() as load:
        load.more()
        os.kill(machines.nodes["node-2"].processes(pod)[number], signal.SIGKILL)
        wait_for(lambda: sum(n for _, n in samples(pod, "ensemble_cell_restarts_total")) == 1, "a new process")
        load.more(80)
    assert not load.failures, load.summary()
    assert pair.containers() == before


def test_a_killed_container_starts_again_and_fails_only_what_it_had(machines: Machines, pair: Served) -> None:
    pod, before = on(pair, "node-2"), pair.containers()
    with pair.load() as load:
        load.more()
        os.kill(machines.nodes["node-2"].processes(pod)[1], signal.SIGKILL)
        killed = load.now
        uid = pod["metadata"]["uid"]
        wait_for(lambda: (uid, 1) in pair.containers(), "another container")
        has_ready(pair, 2)
        print(f"a killed container: {load.now - killed:.1f} s until both copies serve; {load.summary()}")
        load.more(80)
    assert hurt_only(load, pod), load.summary()
    assert pair.containers() == before - {(uid, 0)} | {(uid, 1)}


def test_a_killed_node_fails_only_what_was_on_its_way_there(machines: Machines, pair: Served) -> None:
    pod, other = on(pair, "node-3"), on(pair, "node-2")
    node = machines.nodes["node-3"]
    with pair.load(timeout=3.0) as load:
        load.more()
        node.kill()
        killed = load.now
        wait_for(lambda: pair.space.status(pair.name).get("readyReplicas") == 1, "the node missed", 60)
        print(f"a killed node: missed after {load.now - killed:.1f} s")
        assert pair.space.condition(pair.name, "Ready") == ("True", "Serving", "1 of 2 copies serve")
        load.more(80)
        node.start([])
        has_ready(pair, 2)
        print(f"a killed node: both copies serve after {load.now - killed:.1f} s; {load.summary()}")
        load.more()
    assert hurt_only(load, pod), load.summary()
    assert other["metadata"]["uid"] in {p["metadata"]["uid"] for p in pair.pods()}


def test_a_cordoned_node_keeps_its_copy_and_an_added_one_gets_the_next(machines: Machines, pair: Served) -> None:
    plane, before = machines.plane, pair.containers()
    plane.kubectl("cordon", "node-3")
    with pair.load() as load:
        pair.apply(replicas=3)
        pair.wait("Planned", "False")
        _, reason, message = pair.space.condition(pair.name, "Planned")
        assert reason == "DoesNotFit", message
        added = machines.add()
        has_ready(pair, 3)
        plane.kubectl("uncordon", "node-3")
        load.more()
        assert before < pair.containers() and on(pair, added.name)
        pair.apply(replicas=2)
        has_ready(pair, 2)
        load.more()
    assert not load.failures, load.summary()
    assert pair.containers() == before
    machines.remove(added.name)
