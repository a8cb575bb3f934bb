"""Nodes that die without a word with the only copy of an ensemble, or with a part of it."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from beds.load import Load, Rows
from beds.machines import Machines
from beds.models import COLUMNS, combined
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ROW = np.linspace(-1, 1, COLUMNS, dtype=np.float32).reshape(1, COLUMNS)


def test_the_only_copy_is_taken_over_by_another_node(machines: Machines, served: Callable[..., Served]) -> None:
    devices = machines.whole_nodes()
    only = served("only", devices=devices)
    only.profiles(f"cpu-{devices['cpuCoresPerDevice']}")
    only.apply()
    only.has(1)
    (pod,) = only.pods()
    node = machines.nodes[pod["spec"]["nodeName"]]
    with only.load(timeout=2.0) as load:
        load.more()
        with node.off():
            load.more(80, seconds=120)
            print(f"the only copy: {load.gap():.1f} s without service; {load.summary()}")
            wait_for(lambda: len(only.pods()) == 1, "the successor alone")
        (successor,) = only.pods()
        only.has(1)  # what was left on the dead node is cleared away
    assert successor["spec"]["nodeName"] != node.name
    assert load.spared(successor), load.summary()


def test_without_a_lost_shard_the_quorum_answers(machines: Machines, served: Callable[..., Served]) -> None:
    """One member a node, as in the ensembles that span nodes; what is lost is another part than the head."""
    wide = spanning(machines, served)
    pods = {pod["metadata"]["labels"]["ensembles.dev/role"]: pod for pod in wide.pods()}
    head, shard = pods["head"], pods["shard"]
    node = machines.nodes[shard["spec"]["nodeName"]]
    seen = Seen(wide, head["spec"]["nodeName"])
    with Load(f"{url(wide)}/infer", seen.right) as load:
        seen.wait(whole=20)
        os.kill(node.processes(shard)[1], signal.SIGKILL)
        seen.wait(partial=1)
        seen.wait(whole=20)
        started = load.now
        with node.off():
            seen.wait(partial=20)
            print(f"a lost shard: {load.now - started:.1f} s to the 20th answer without it")
            wide.wait("Planned", "False")
            seen.wait(partial=20)
            assert wide.space.condition(wide.name, "Ready")[0] == "True"
            message = refused(wide, min_members=2)
            assert f"{seen.lost}: " in message and shard["metadata"]["name"] in message
        seen.wait(whole=20)
    assert not load.failures, load.summary()
    assert {(p["metadata"]["uid"], p["spec"]["nodeName"]) for p in wide.pods()} == {
        (p["metadata"]["uid"], p["spec"]["nodeName"]) for p in (head, shard)
    }


class Seen:
    """The answers of an ensemble of two members: how many were of both, and how many of the head's own alone."""

    def __init__(self, ensemble: Served, node: str) -> None:
        spec, matrix = ensemble.manifest["spec"], ensemble.space.status(ensemble.name)["matrix"]
        (mine,) = (row["cells"][0]["member"] for row in matrix if row["node"] == node)
        (self.lost,) = {member["name"] for member in spec["members"]} - {mine}
        self._spec, self._alone = spec, spec | {"members": [m for m in spec["members"] if m["name"] == mine]}
        self._whole = self._partial = 0

    def right(self, rows: Rows, answer: Rows) -> bool:
        """Whether an answer is one of the two."""
        whole = np.allclose(answer, combined(self._spec, rows), atol=1e-4)
        partial = np.allclose(answer, combined(self._alone, rows), atol=1e-4)
        self._whole += whole
        self._partial += partial
        return bool(whole or partial)

    def wait(self, *, whole: int = 0, partial: int = 0) -> None:
        """Wait for so many more."""
        goal = self._whole + whole, self._partial + partial
        what = f"{whole} answers of both members, {partial} of the head's alone"
        wait_for(lambda: self._whole >= goal[0] and self._partial >= goal[1], what, 120)


def spanning(machines: Machines, served: Callable[..., Served]) -> Served:
    """An ensemble on node-2 and node-3: each member takes more than half of a node's memory."""
    devices, kib = machines.whole_nodes(), machines.nodes["node-2"].allocatable("memory")
    serving = {"quorum": {"minMembers": 1, "deadlineMs": 60_000}, "timeoutMs": 90_000}
    wide = served("wide", 2, devices=devices, serving=serving)
    wide.profiles(f"cpu-{devices['cpuCoresPerDevice']}", memory_mib=0.6 * kib / 1024)
    wide.apply()
    wide.wait()
    assert {pod["spec"]["nodeName"] for pod in wide.pods()} == {"node-2", "node-3"}
    return wide


def url(ensemble: Served) -> str:
    """Where it is asked."""
    return f"{ensemble.cluster.url(ensemble.space.namespace, ensemble.name)}/v2/models/{ensemble.name}"


def refused(ensemble: Served, **parameters: Any) -> str:
    """What a request is told that is refused."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, COLUMNS], "data": ROW.tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    request = urllib.request.Request(f"{url(ensemble)}/infer", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == 500
    message: str = json.loads(error.value.read())["error"]
    return message
