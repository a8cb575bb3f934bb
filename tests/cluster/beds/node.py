"""One real node: a kubelet with a containerd of its own, in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beds.client import ApiError
from beds.controlplane import ControlPlane
from beds.images import PAUSE
from beds.processes import Program, StartError, wait_for
from beds.silence import fall_silent, speak_again

CGROUPS = Path("/sys/fs/cgroup")
# Where kubelets, CNI and containerd keep what must be one node's alone, whatever their flags say; and hostPath volumes.
PRIVATE = ("/var/lib/kubelet", "/var/log", "/var/lib/cni", "/run/netns", "/run/containerd", "/var/lib/ensembles")


@dataclass(frozen=True)
class Place:
    """Where a node stands.

    Attributes:
        name: Its name in the cluster.
        address: Its address, on `lo`.
        pods: The range of its pods' addresses.
        dns: The address of the cluster's DNS.
        labels: Its labels.
        gpus: UUIDs of its GPUs.
        claims: Whether they are published in ResourceSlices, by a DRA driver, instead of offered by a device plugin.
        nvml: The folder with the stub of NVML that containers with a GPU get.
    """

    name: str
    address: str
    pods: str
    dns: str
    labels: Mapping[str, str]
    gpus: tuple[str, ...]
    claims: bool
    nvml: Path


class Node:
    """One node; `start`, `kill` (as if its power were cut), and `start` again."""

    def __init__(self, place: Place, plane: ControlPlane, binaries: Mapping[str, Path]) -> None:
        self.name = place.name
        self.place = place
        self.plane = plane
        self.folder = plane.folder / place.name
        self.socket = self.folder / "containerd.sock"
        # Not by pid: every enclosure counts its processes from 1, and they share the machine's cgroups.
        self._cgroup = f"ensembles-{secrets.token_hex(4)}-{place.name}"
        self.folder.mkdir(parents=True)
        self._client = binaries["ctr"]
        self._write_configuration(binaries["containerd-shim-runc-v2"])
        self._holder = Program("namespace", [*self._unshare()], self.folder / "namespace.log")
        configuration = self.folder / "containerd.toml"
        self.containerd = self._program("containerd", [binaries["containerd"], "--config", configuration])
        self.kubelet = self._program("kubelet", [binaries["kubelet"], *self._kubelet_flags()])
        driver, flags = self._gpu_driver()
        self.gpus = self._program(driver, [binaries[driver], *flags])

    def start(self, images: Iterable[Path]) -> None:
        """Bring the node up with these images; returns when it is ready."""
        speak_again(self.place.pods)
        for group in self._cgroups():
            _make_cgroup(group)
        self._holder.start()
        wait_for(lambda: (self.folder / "mounted").exists(), f"the mounts of {self.name}")
        self.containerd.start()
        self.containerd.wait_until(self._containerd_ready, "answers")
        for archive in images:
            self.load(archive)
        self._start_kubelet()
        if self.place.gpus:
            self.gpus.start()
            self.gpus.wait_until(lambda: self._offered() == len(self.place.gpus), "GPUs offered")

    def load(self, archive: Path) -> None:
        """An image becomes known to the node."""
        self._ctr("images", "import", str(archive))

    def forget(self, image: str) -> None:
        """An image is not there any more; what runs of it goes on."""
        self._ctr("images", "rm", "--sync", image)

    def processes(self, pod: Mapping[str, Any], container: str = "runtime") -> dict[int, int]:
        """The processes of a pod's container: its own number of each -> the machine's."""
        (status,) = (s for s in pod["status"]["containerStatuses"] if s["name"] == container)
        listed = subprocess.run(
            self._ctr_command("tasks", "ps", status["containerID"].removeprefix("containerd://")),
            capture_output=True,
            text=True,
            check=True,
        )
        pids = [int(line.split()[0]) for line in listed.stdout.splitlines()[1:]]
        return {_innermost(pid): pid for pid in pids}

    def kill(self) -> None:
        """End the kubelet, containerd and every container at once without a word, as when the power is cut."""
        fall_silent(self.place.pods)
        self._end()

    @contextmanager
    def off(self) -> Iterator[None]:
        """It is dead meanwhile, and ready again after that."""
        self.kill()
        try:
            yield
        finally:
            self.start([])

    def _end(self) -> None:
        self.gpus.kill()
        self.kubelet.kill()
        self.containerd.kill()
        self._kill_containers()
        self._holder.kill()
        (self.folder / "mounted").unlink(missing_ok=True)

    def stop(self) -> None:
        """End everything, and leave no cgroup behind."""
        self._end()
        for group in self._cgroups():
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    continue  # a process that dies just now; the kernel removes nothing that is in use
        shutil.rmtree(self.folder / "containerd", ignore_errors=True)

    def ready(self) -> bool:
        """Whether the API server has heard from it that it is ready."""
        try:
            conditions = self.plane.admin.get(f"/api/v1/nodes/{self.name}")["status"].get("conditions", [])
        except (ApiError, OSError):
            return False
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def allocatable(self, resource: str) -> int:
        """How much of a resource the kubelet offers to pods; memory in KiB."""
        offered = self.plane.admin.get(f"/api/v1/nodes/{self.name}")["status"]["allocatable"]
        return int(str(offered.get(resource, 0)).removesuffix("Ki"))

    def prepared(self) -> list[Path]:
        """The CDI specifications that the DRA driver has written, one for each claim of a pod here."""
        return list((self.folder / "cdi").glob("claim-*.json"))

    def break_gpus(self, *uuids: str) -> None:
        """The device plugin reports these GPUs as unhealthy from now on, and all others as healthy."""
        self._broken.write_text("\n".join(uuids))

    def private(self, path: Path) -> Path:
        """Where a path below one of `PRIVATE`, as the node has it, is for all others."""
        (target,) = (target for target in PRIVATE if path.is_relative_to(target))
        return self._own(target) / path.relative_to(target)

    def within(self, *command: str | Path) -> list[str]:
        """A command line that runs in the node's mount namespace."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *map(str, command)]

    def _start_kubelet(self) -> None:
        self.kubelet.start()
        try:
            self.kubelet.wait_until(self.ready, "the node is ready")
        except StartError:
            # containerd answers before its CRI does; where systemd runs a kubelet, it starts it again as well.
            if "server is not initialized yet" not in self.kubelet.tail():
                raise
            self.kubelet.kill()
            self._start_kubelet()

    def _program(self, name: str, command: list[str | Path]) -> Program:
        # The holder's pid is known only when the node starts.
        script = 'exec nsenter --mount="/proc/$(cat "$0")/ns/mnt" -- "$@"'
        pid = self.folder / "mounted"
        return Program(f"{name} of {self.name}", ["sh", "-c", script, pid, *command], self.folder / f"{name}.log")

    @property
    def _broken(self) -> Path:
        return self.folder / "broken-gpus"

    def _gpu_driver(self) -> tuple[str, list[str | Path]]:
        place = self.place
        flags: list[str | Path] = [f"-uuids={','.join(place.gpus)}", f"-library={place.nvml}"]
        if not place.claims:
            return "gpu-device-plugin", [*flags, f"-unhealthy={self._broken}"]
        user = self.plane.kubeconfig(self.plane.token(f"system:node:{self.name}"))
        return "gpu-dra-driver", [*flags, f"-node={self.name}", f"-cdi={self.folder / 'cdi'}", f"-kubeconfig={user}"]

    def _offered(self) -> int:
        if not self.place.claims:
            return self.allocatable("nvidia.com/gpu")
        slices = self.plane.admin.items("/apis/resource.k8s.io/v1/resourceslices")
        return sum(len(one["spec"]["devices"]) for one in slices if one["spec"].get("nodeName") == self.name)

    def _unshare(self) -> list[str | Path]:
        lines = ["set -e"]
        for target in PRIVATE:
            own = self._own(target)
            lines.append(f"mkdir -p {target} {own}; mount --bind {own} {target}")
        lines.append(f"echo $$ > {self.folder}/mounted.new; mv {self.folder}/mounted.new {self.folder}/mounted")
        return ["unshare", "--mount", "sh", "-c", "; ".join(lines) + "; exec sleep infinity"]

    def _own(self, target: str) -> Path:
        return self.folder / "mounts" / target.strip("/").replace("/", "-")

    def _containerd_ready(self) -> bool:
        return (
            self.socket.exists() and subprocess.run(self._ctr_command("version"), capture_output=True).returncode == 0
        )

    def _ctr_command(self, *arguments: str) -> list[str]:
        return self.within(self._client, "--address", self.socket, "--namespace", "k8s.io", *arguments)

    def _ctr(self, *arguments: str) -> None:
        subprocess.run(self._ctr_command(*arguments), capture_output=True, check=True)

    def _cgroups(self) -> list[Path]:
        if (CGROUPS / "cgroup.controllers").exists():
            return [CGROUPS / self._cgroup]
        return [folder / self._cgroup for folder in CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink()]

    def _kill_containers(self) -> None:
        def pids() -> set[int]:
            files = (file for group in self._cgroups() for file in group.rglob("cgroup.procs"))
            return {int(pid) for file in files for pid in file.read_text().split()} - {0}

        def gone() -> bool:
            left = pids()
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            return not left

        wait_for(gone, f"the end of all containers of {self.name}")

    def _write_configuration(self, shim: Path) -> None:
        (self.folder / "containerd.toml").write_text(_CONTAINERD.format(folder=self.folder, pause=PAUSE, shim=shim))
        network = self.folder / "cni"
        network.mkdir()
        ipam = {
            "type": "host-local",
            "subnet": self.place.pods,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.folder / "addresses"),
        }
        plugins = [{"type": "ptp", "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        configuration = {"cniVersion": "1.0.0", "name": "bed", "plugins": plugins}
        (network / "10-bed.conflist").write_text(json.dumps(configuration))
        (self.folder / "kubelet.json").write_text(json.dumps(self._kubelet_configuration()))

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.place.address,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "failCgroupV1": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "healthzPort": 0,
            "clusterDNS": [self.place.dns],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            # Nobody but the bed is in its network.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "shutdownGracePeriod": "0s",
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "2s",
        }

    def _kubelet_flags(self) -> list[str | Path]:
        token = self.plane.token(f"system:node:{self.name}")
        return [
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self.plane.kubeconfig(token)}",
            f"--cert-dir={self.folder / 'certificates'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.place.address}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in self.place.labels.items())}",
        ]


def _innermost(pid: int) -> int:
    """A process's number in its own container."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def _make_cgroup(group: Path) -> None:
    group.mkdir(exist_ok=True)
    # A cpuset of cgroup v1 begins empty, and nothing can run in it until it is told where.
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (file := group / name).exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())


_CONTAINERD = """
version = 3
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"

[grpc]
address = "{folder}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/containerd/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
cdi_spec_dirs = ["{folder}/cdi"]

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{shim}"

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{folder}/cni"
"""
