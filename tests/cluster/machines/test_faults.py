"""Processes, containers and nodes that die under the load of an ensemble of two copies, one on a node each."""

from __future__ import annotations

import os
import re
import signal

import pytest

from beds.machines import Machines
from beds.processes import wait_for
from beds.scraping import samples
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up


def test_a_killed_process_fails_no_request(machines: Machines, pair: Served) -> None:
    pod, before = pair.on("node-2"), pair.containers()
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
    pod, other, before = pair.on("node-2"), pair.on("node-3"), pair.containers()
    with pair.load() as load:
        load.more()
        os.kill(machines.nodes["node-2"].processes(pod)[1], signal.SIGKILL)
        killed = load.now
        uid = pod["metadata"]["uid"]
        wait_for(lambda: (uid, 1) in pair.containers(), "another container")
        pair.has(2)
        print(f"a killed container: {load.now - killed:.1f} s until both copies serve; {load.summary()}")
        load.more(80)
    assert load.spared(other), load.summary()
    assert pair.containers() == before - {(uid, 0)} | {(uid, 1)}


def test_a_killed_node_fails_only_what_was_on_its_way_there(machines: Machines, pair: Served) -> None:
    other = pair.on("node-2")
    with pair.load(timeout=3.0) as load:
        load.more()
        killed = load.now
        with machines.nodes["node-3"].off():
            wait_for(lambda: pair.space.status(pair.name).get("readyReplicas") == 1, "the node missed", 60)
            print(f"a killed node: missed after {load.now - killed:.1f} s")
            assert pair.space.condition(pair.name, "Ready") == ("True", "Serving", "1 of 2 copies serve")
            load.more(80)
        pair.has(2)
        print(f"a killed node: both copies serve after {load.now - killed:.1f} s; {load.summary()}")
        load.more()
    assert load.spared(other, pair.on("node-3")), load.summary()
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
        pair.has(3)
        plane.kubectl("uncordon", "node-3")
        load.more()
        assert before < pair.containers() and pair.on(added.name)
        pair.apply(replicas=2)
        pair.has(2)
        load.more()
    assert not load.failures, load.summary()
    assert pair.containers() == before
    machines.remove(added.name)
