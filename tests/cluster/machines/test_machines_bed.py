"""The cluster of real nodes does what the tests that stand on it take for granted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from beds import images
from beds.client import Manifest
from beds.machines import Machines
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
PATIENCE = 120.0
SERVER = """
import http.server, socketserver
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'hello from ' + self.path.encode())
socketserver.TCPServer(('', 8000), Hello).serve_forever()
"""


def pod(namespace: str, name: str, code: str, *, node: str | None = None, gpus: int = 0) -> Manifest:
    """Python of the runtime's image, under restricted pod security."""
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    container = {
        "name": "python",
        "image": images.RUNTIME,
        "imagePullPolicy": "Never",
        "command": ["python", "-u", "-c", code],
        "resources": {"limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def phase(machines: Machines, namespace: str, name: str) -> str:
    found: str = machines.plane.admin.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"]["phase"]
    return found


def output(machines: Machines, namespace: str, name: str) -> str:
    """What a pod printed, as soon as it has ended."""
    wait_for(lambda: phase(machines, namespace, name) in ("Succeeded", "Failed"), f"the end of {name}", PATIENCE)
    said = machines.plane.kubectl("logs", name, namespace=namespace)
    assert phase(machines, namespace, name) == "Succeeded", said
    return said


def test_services_and_dns_reach_across_nodes(machines: Machines, room: str) -> None:
    plane = machines.plane
    plane.admin.create(pod(room, "server", SERVER, node="node-1"))
    service = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]}
    plane.admin.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "hello", "namespace": room},
            "spec": service,
        }
    )
    wait_for(lambda: phase(machines, room, "server") == "Running", "the server running", PATIENCE)
    ask = f"""
import time, urllib.request
for attempt in range(100):
    try:
        print(urllib.request.urlopen('http://hello.{room}.svc.cluster.local/there', timeout=2).read().decode())
        break
    except OSError as error:
        print(error)
        time.sleep(0.2)
"""
    plane.admin.create(pod(room, "client", ask, node="node-2"))
    assert output(machines, room, "client").splitlines()[-1] == "hello from /there"
    said = plane.kubectl("exec", "server", "--", "id", "-u", namespace=room)
    assert said.strip() == "65532"


def test_a_container_sees_the_gpus_that_it_got(machines: Machines, room: str) -> None:
    code = """
import json, os
from ensemble_runtime.devices.nvidia import gpus
print(json.dumps([[gpu.uuid, gpu.product] for gpu in gpus()]))
"""
    plane = machines.plane
    for name, count in (("one", 1), ("two", 2), ("none", 0)):
        plane.admin.create(pod(room, name, code, gpus=count))
    seen = {name: json.loads(output(machines, room, name)) for name in ("one", "two", "none")}
    assert [len(seen[name]) for name in ("one", "two", "none")] == [1, 2, 0]
    assert {product for _, product in seen["two"]} == {"NVIDIA-A100-SXM4-40GB"}
    node = plane.admin.get(f"/api/v1/namespaces/{room}/pods/two")["spec"]["nodeName"]
    assert [uuid for uuid, _ in seen["two"]] == [f"GPU-{node}-0", f"GPU-{node}-1"]


def test_a_broken_gpu_is_offered_no_more(machines: Machines) -> None:
    node = machines.nodes["node-2"]
    node.break_gpus("GPU-node-2-1")
    wait_for(lambda: node.allocatable("nvidia.com/gpu") == 1, "one GPU left", PATIENCE)
    node.break_gpus()
    wait_for(lambda: node.allocatable("nvidia.com/gpu") == 2, "both GPUs back", PATIENCE)


def test_a_killed_node_is_noticed_and_comes_back(machines: Machines) -> None:
    node = machines.add()
    node.kill()
    wait_for(lambda: not node.ready(), f"{node.name} not ready", PATIENCE)
    node.start([])
    assert node.ready()
    machines.remove(node.name)


def test_nothing_leads_out_of_the_enclosure(machines: Machines, room: str) -> None:
    code = """
import socket
try:
    socket.create_connection(('192.0.2.1', 443), timeout=2)
except OSError as error:
    print('unreachable')
"""
    machines.plane.admin.create(pod(room, "outwards", code))
    assert output(machines, room, "outwards").strip() == "unreachable"
