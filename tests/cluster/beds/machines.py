"""A whole cluster on this machine: control plane, real nodes, Services and DNS. Only inside an enclosure.

All addresses are on `lo` of the enclosure's network, in 198.18.0.0/15, which is reserved for tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from beds.client import Manifest
from beds.controlplane import ControlPlane, Options
from beds.models import ModelServer
from beds.node import Node, Place
from beds.processes import Program

API_ADDRESS, API_PORT = "198.18.0.1", 6443
DNS_ADDRESS = "198.18.0.10"
MODELS_ADDRESS = "198.18.0.20"
OUTSIDE_ADDRESS = "198.18.0.30"
"""Of whatever a test lets pods, and the API server, reach outside of the cluster."""
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
PROXY, DNS = "system:kube-proxy", "bed:dns"
PROXY_HEALTH = "127.0.0.1:10256"
MOST_NODES = 8
NVML_STUB = Path(__file__).parents[2] / "unit" / "devices" / "stub_nvml.c"
GRACE_SECONDS = 6
CONTROLLERS = (
    # Lost nodes are noticed within seconds; the 50 s that are the default are for networks that hiccup.
    "--node-monitor-period=1s",
    f"--node-monitor-grace-period={GRACE_SECONDS}s",
    "--node-startup-grace-period=30s",
    "--horizontal-pod-autoscaler-sync-period=1s",
)


class Machines:
    """The cluster; a context manager.

    Attributes:
        plane: Its control plane.
        nodes: Its nodes by name, node-1 first.
        models: A web server for models that every pod can reach.
    """

    def __init__(
        self,
        binaries: Mapping[str, Path],
        images: Sequence[Path],
        folder: Path,
        *,
        count: int = 2,
        gpus: int = 2,
    ) -> None:
        self._binaries = binaries
        self._images = images
        users = {f"system:node:node-{i}": ("system:nodes",) for i in range(1, MOST_NODES + 1)}
        # CoreDNS reads what an administrator may read; its own Role would test CoreDNS, not this project.
        users |= {PROXY: (), DNS: ("system:masters",)}
        options = Options(API_ADDRESS, API_PORT, SERVICES, users=users, controllers=CONTROLLERS)
        self._count = count
        self._made = 0
        self._gpus = gpus
        self._nvml = folder / "nvml"
        self.models = ModelServer(folder / "models", MODELS_ADDRESS)
        self.folder = folder
        self._options = options
        self.nodes: dict[str, Node] = {}
        self._beside: list[Program] = []

    def __enter__(self) -> Self:
        self._network()
        self.plane = ControlPlane(self._binaries, self.folder, self._options)
        try:
            self.plane.__enter__()
            self._compile_nvml()
            self.models.start()
            proxy, dns = self._programs()
            self._beside += [self.models.program, proxy, dns]
            proxy.start()
            dns.start()
            for _ in range(self._count):
                self.add()
            proxy.wait_until(_proxy_healthy, "rules of Services written")
            dns.wait_until(lambda: True, "running")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes.values():
            node.stop()
        for program in self._beside:
            program.kill()
        self.plane.stop()

    def whole_nodes(self) -> dict[str, Any]:
        """An ensemble's devices such that each is a whole node, one that nobody else uses."""
        return {"kinds": ["CPU"], "cpuCoresPerDevice": self.nodes["node-2"].allocatable("cpu")}

    def service_url(self, namespace: str, name: str) -> str:
        """The address of a Service's port 8000, which is also this process's way through kube-proxy's rules."""
        service = self.plane.admin.get(f"/api/v1/namespaces/{namespace}/services/{name}")
        return f"http://{service['spec']['clusterIP']}:8000"

    @contextmanager
    def enforcing(self) -> Iterator[None]:
        """The network enforces NetworkPolicies meanwhile; connections from no pod are always let through."""
        command = [
            self._binaries["network-policies"],
            f"--kubeconfig={self.plane.kubeconfig()}",
            "--node=node-1",
            f"--services={SERVICES}",
        ]
        enforcer = Program("network-policies", command, self.folder / "network-policies.log")
        enforcer.start()
        try:
            yield
            assert enforcer.running(), enforcer.tail()
        finally:
            enforcer.kill(signal.SIGTERM)  # it takes its rules away

    def environment(self, namespace: str = "default") -> dict[str, str]:
        """For a user who types kubectl, with or without `ensemble`, and helm."""
        programs = (self._binaries["kubectl"], self._binaries["helm"], Path(sys.executable))
        return os.environ | {
            "KUBECONFIG": str(self.plane.kubeconfig(namespace=namespace)),
            "KUBECACHEDIR": str(self.folder / "kubectl-cache"),
            "PATH": os.pathsep.join([*(str(program.parent) for program in programs), os.environ["PATH"]]),
        }

    def provision(self, claim: Manifest, namespace: str) -> str:
        """What a provisioner does: a volume for a claim, a folder here that every node sees; returns its name."""
        name = f"{namespace}-{claim['metadata']['name']}"
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        spec = {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": claim["spec"]["resources"]["requests"],
            "claimRef": {"namespace": namespace, "name": claim["metadata"]["name"]},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        self.plane.admin.create(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        )
        return name

    def add(self, *, claims: bool = False) -> Node:
        """One more node joins, with all images; a device plugin offers its GPUs, or they are claimed one by one."""
        self._made += 1
        number = self._made
        place = Place(
            name=f"node-{number}",
            address=f"198.18.1.{number}",
            pods=f"10.244.{number}.0/24",
            dns=DNS_ADDRESS,
            labels=_gpu_labels(self._gpus) if self._gpus and not claims else {},
            gpus=tuple(f"GPU-node-{number}-{i}" for i in range(self._gpus)),
            claims=claims,
            nvml=self._nvml,
        )
        _address(place.address)
        if claims:
            self.plane.admin.apply(_GPU_CLASS)
        node = Node(place, self.plane, self._binaries)
        self.nodes[node.name] = node
        node.start(self._images)
        return node

    def remove(self, name: str) -> None:
        """A node leaves for good."""
        self.nodes.pop(name).stop()
        self.plane.admin.delete(f"/api/v1/nodes/{name}")

    def _compile_nvml(self) -> None:
        self._nvml.mkdir()
        library = str(self._nvml / "libnvidia-ml.so.1")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, str(NVML_STUB)], check=True)

    def _network(self) -> None:
        for address in (API_ADDRESS, DNS_ADDRESS, MODELS_ADDRESS, OUTSIDE_ADDRESS):
            _address(address)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # Without a route of its own, a local client of a ClusterIP would have no source address; and from `lo` nobody
        # would hear that a connection to a Service without pods is refused.
        _ip("link", "add", "services", "type", "bridge")
        _ip("link", "set", "services", "up")
        _ip("route", "replace", SERVICES, "dev", "services", "src", API_ADDRESS)

    def _programs(self) -> tuple[Program, Program]:
        flags = [
            f"--kubeconfig={self.plane.kubeconfig(self.plane.token(PROXY))}",
            "--hostname-override=node-1",  # all nodes share one network, and so one set of rules
            "--proxy-mode=iptables",
            f"--cluster-cidr={PODS}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            f"--healthz-bind-address={PROXY_HEALTH}",
            "--iptables-min-sync-period=100ms",
        ]
        proxy = Program("kube-proxy", [self._binaries["kube-proxy"], *flags], self.folder / "kube-proxy.log")
        corefile = self.folder / "Corefile"
        kubeconfig = self.plane.kubeconfig(self.plane.token(DNS))
        corefile.write_text(
            f".:53 {{\n  bind {DNS_ADDRESS}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n"
            f"    kubeconfig {kubeconfig} bed\n    ttl 1\n  }}\n}}\n"
        )
        dns = Program("coredns", [self._binaries["coredns"], "-conf", corefile], self.folder / "coredns.log")
        return proxy, dns


_GPU_CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}]},
}
"""What claims ask for: NVIDIA's chart would install it with the driver."""


def _gpu_labels(count: int) -> dict[str, str]:
    """What GPU feature discovery would say of the stub's GPUs."""
    return {
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.memory": "40960",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
    }


def _proxy_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://{PROXY_HEALTH}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _address(address: str) -> None:
    _ip("address", "replace", f"{address}/32", "dev", "lo")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, env=os.environ)
