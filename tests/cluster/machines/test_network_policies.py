"""Who may connect to whom where a network enforces NetworkPolicies, as kube-router's controller does here meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from beds.access import Access
from beds.chart import SELECTOR
from beds.client import Manifest
from beds.cluster import Cluster
from beds.images import REPOSITORY, RUNTIME
from beds.machines import Machines
from beds.models import COLUMNS
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ROWS = np.linspace(-2, 2, 4 * COLUMNS, dtype=np.float32).reshape(4, COLUMNS)
GATEWAY, METRICS = 8000, 8081
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("reached")
except ConnectionRefusedError:
    print("refused")
"""


@dataclass(frozen=True)
class Pod:
    """A pod, by its name and namespace, with Python in it."""

    plane: Access
    namespace: str
    name: str

    @property
    def address(self) -> str:
        """Its IP address."""
        pod = self.plane.admin.get(f"/api/v1/namespaces/{self.namespace}/pods/{self.name}")
        return str(pod["status"]["podIP"])

    def reaches(self, other: Pod, port: int) -> bool:
        """Whether it can open a connection; nobody means that it is refused, as kube-router does, not left to wait."""
        command = ("exec", self.name, "--", "python", "-c", CONNECT, other.address, str(port))
        said = self.plane.kubectl(*command, namespace=self.namespace).strip()
        assert said in ("reached", "refused"), said
        return said == "reached"


@pytest.fixture(scope="module")
def monitoring(machines: Machines) -> Iterator[Pod]:
    """Where the docs have Prometheus."""
    namespace: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}}
    machines.plane.admin.apply(namespace)
    yield started(machines, "monitoring", "prometheus")
    machines.plane.admin.delete("/api/v1/namespaces/monitoring")


def started(machines: Machines, namespace: str, name: str, **labels: str) -> Pod:
    """A pod that is told whom to connect to, and that others can connect to."""
    plane, meta = machines.plane, {"name": name, "namespace": namespace, "labels": labels}
    container = {
        "name": "python",
        "image": RUNTIME,
        "command": ["python", "-m", "http.server", str(GATEWAY), "--directory", "/tmp"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "containers": [container],
        "nodeSelector": {"kubernetes.io/hostname": "node-1"},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
    }
    wait_for(
        lambda: plane.admin.exists(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), f"account of {namespace}"
    )
    plane.admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    plane.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=50s", namespace=namespace)
    return Pod(plane, namespace, name)


def documented() -> dict[str, Manifest]:
    """The policies that docs/security.md shows, by name."""
    page = (REPOSITORY / "docs" / "security.md").read_text()
    found = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    return {one["metadata"]["name"]: one for one in found if one["kind"] == "NetworkPolicy"}


def test_a_shard_is_for_its_head_and_for_whom_the_docs_let_in(
    machines: Machines, served: Callable[..., Served], monitoring: Pod
) -> None:
    devices, kib = machines.whole_nodes(), machines.nodes["node-2"].allocatable("memory")
    wide = served("wide", 2, devices=devices)
    wide.profiles(f"cpu-{devices['cpuCoresPerDevice']}", memory_mib=0.6 * kib / 1024)
    wide.apply()
    wide.wait()
    namespace = wide.space.namespace
    by_role = {pod["metadata"]["labels"]["ensembles.dev/role"]: pod["metadata"]["name"] for pod in wide.pods()}
    head, shard = (Pod(machines.plane, namespace, by_role[role]) for role in ("head", "shard"))
    stranger, client = (
        started(machines, namespace, "stranger"),
        started(machines, namespace, "client", **{"may-predict": "true"}),
    )
    policies = documented()

    def reaching(target: Pod) -> set[str]:
        """Who reaches its gateway."""
        asking = (head, stranger, client, monitoring) if target is shard else (stranger, client, monitoring)
        return {"head" if pod is head else pod.name for pod in asking if pod.reaches(target, GATEWAY)}

    everybody = {"stranger", "client", "prometheus"}
    assert reaching(shard) == {"head", *everybody}, "nothing is enforced yet"
    with machines.enforcing():
        wait_for(lambda: not stranger.reaches(shard, GATEWAY), "the shard's policy enforced")
        assert reaching(shard) == {"head"}
        assert reaching(head) == everybody
        machines.plane.kubectl(
            "apply",
            "-f",
            "-",
            manifests=[policies["ensembles-clients"], policies["ensembles-metrics"]],
            namespace=namespace,
        )
        wait_for(lambda: not stranger.reaches(head, GATEWAY), "the documented policies enforced")
        assert reaching(head) == {"client"}
        wait_for(lambda: monitoring.reaches(shard, GATEWAY), "the documented policies enforced")
        assert reaching(shard) == {"head", "prometheus"}
        assert wide.right(ROWS, wide.predict(ROWS))
    assert reaching(shard) == {"head", *everybody}, "it is the enforcer that refuses"


def test_the_operator_works_within_the_charts_policy(
    machines: Machines, cluster: Cluster, served: Callable[..., Served], monitoring: Pod
) -> None:
    """It starts anew behind the fence, so that every connection of its own is a new one."""
    peers = '[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]'
    fence = ("--set", "networkPolicy.enabled=true", "--set-json", f"networkPolicy.metricsFrom={peers}")
    small = served("small", 1, devices={"kinds": ["CPU"], "max": 1})
    stranger = started(machines, small.space.namespace, "stranger")
    before = operator_of(cluster)
    assert before.reaches(stranger, GATEWAY) and stranger.reaches(before, METRICS)
    with machines.enforcing():
        try:
            cluster.chart.install({"podAnnotations.fenced": "yes"}, fence)
            operator = operator_of(cluster)
            assert operator != before
            wait_for(lambda: not stranger.reaches(operator, METRICS), "the chart's policy enforced")
            assert monitoring.reaches(operator, METRICS)
            small.apply()
            small.wait()
            (pod,) = small.pods()
            ensemble = Pod(machines.plane, small.space.namespace, pod["metadata"]["name"])
            assert operator.reaches(ensemble, GATEWAY) and not operator.reaches(stranger, GATEWAY)
        finally:
            cluster.chart.install()


def operator_of(cluster: Cluster) -> Pod:
    """The operator's pod."""
    namespace = cluster.chart.namespace
    pods = cluster.plane.admin.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=SELECTOR[1])
    (name,) = (pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"])
    return Pod(cluster.plane, namespace, str(name))
