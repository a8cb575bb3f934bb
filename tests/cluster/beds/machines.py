"""A whole cluster on this machine: control plane, real nodes, Services and DNS. Only inside an enclosure.

All addresses are on `lo` of the enclosure's network, in 198.18.0.0/15, which is reserved for tests.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from beds.controlplane import ControlPlane, Options
from beds.node import Node, Place
from beds.processes import Program

API_ADDRESS = "198.18.0.1"
DNS_ADDRESS = "198.18.0.10"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
PROXY, DNS = "system:kube-proxy", "bed:dns"
MOST_NODES = 5
# Lost nodes are noticed within seconds; Kubernetes' own 40 s are for networks that hiccup.
MONITORING = ("--node-monitor-period=1s", "--node-monitor-grace-period=6s", "--node-startup-grace-period=30s")


class Machines:
    """The cluster; a context manager.

    Attributes:
        plane: Its control plane.
        nodes: Its nodes by name, node-1 first.
    """

    def __init__(
        self,
        binaries: Mapping[str, Path],
        images: Sequence[Path],
        folder: Path,
        count: int = 2,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._binaries = binaries
        self._images = images
        self._labels = labels or {}
        users = {f"system:node:node-{i}": ("system:nodes",) for i in range(1, MOST_NODES + 1)}
        # CoreDNS reads what an administrator may read; its own Role would test CoreDNS, not this project.
        users |= {PROXY: (), DNS: ("system:masters",)}
        options = Options(address=API_ADDRESS, services=SERVICES, users=users, controllers=MONITORING)
        self._count = count
        self.folder = folder
        self._options = options
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        self._network()
        self.plane = ControlPlane(self._binaries, self.folder, self._options)
        try:
            self.plane.__enter__()
            self._proxy, self._dns = self._programs()
            self._proxy.start()
            self._dns.start()
            for _ in range(self._count):
                self.add()
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
        self.plane.stop()

    def add(self) -> Node:
        """One more node joins, with all images."""
        number = len(self.nodes) + 1
        place = Place(f"node-{number}", f"198.18.1.{number}", f"10.244.{number}.0/24", DNS_ADDRESS)
        _address(place.address)
        node = Node(place, self.plane, self._binaries, self._labels)
        self.nodes[node.name] = node
        node.start(self._images)
        return node

    def _network(self) -> None:
        for address in (API_ADDRESS, DNS_ADDRESS):
            _address(address)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # Without a route of its own, a local client of a ClusterIP would have no source address.
        _ip("route", "replace", SERVICES, "dev", "lo", "src", API_ADDRESS)

    def _programs(self) -> tuple[Program, Program]:
        flags = [
            f"--kubeconfig={self.plane.kubeconfig(self.plane.token(PROXY))}",
            "--hostname-override=node-1",  # all nodes share one network, and so one set of rules
            "--proxy-mode=iptables",
            f"--cluster-cidr={PODS}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--healthz-bind-address=127.0.0.1:0",
            "--metrics-bind-address=127.0.0.1:0",
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


def _address(address: str) -> None:
    _ip("address", "replace", f"{address}/32", "dev", "lo")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, env=os.environ)
