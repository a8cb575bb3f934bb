"""Runs a command in a network, process and mount namespace of its own: nothing leaves the machine, nothing outlives it.

`python tests/cluster/beds/enclosure.py pytest tests/cluster` first builds what needs a network, then goes inside. Where
the machine cannot do it, one line says why and the command runs outside: tests that need the machines then skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from beds import binaries, images

MARK = "ENSEMBLES_ENCLOSED"
NODE = (*binaries.CONTAINERD, "kubelet", "kube-proxy", "coredns")
PROGRAMS = (*binaries.CONTROL_PLANE, *NODE, "helm", *binaries.OWN)
PACKAGES = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "runc": "runc",
    "unshare": "util-linux",
}
CNI = Path("/usr/lib/cni")


def inside() -> bool:
    """Whether this process runs in an enclosure already."""
    return MARK in os.environ


def archives() -> list[Path]:
    """The images that were built before this enclosure was entered, for its nodes to load."""
    return [Path(path) for path in os.environ[MARK].split(os.pathsep)]


def missing() -> str | None:
    """One line that says what this machine lacks for real nodes; None where nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "real nodes need root on Linux"
    absent = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
    if not (CNI / "ptp").exists():
        absent.append("containernetworking-plugins")
    if absent:
        return f"apt-get install {' '.join(sorted(absent))}"
    return binaries.missing(PROGRAMS)


def enter(command: list[str], images: list[Path]) -> NoReturn:
    """This process becomes the enclosure and ends with the command's exit code; all inside ends with it."""
    marked = os.environ | {MARK: os.pathsep.join(map(str, images))}
    flags = ["--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    os.execvpe("unshare", ["unshare", *flags, "--", sys.executable, __file__, "--inside", *command], marked)


def _supervise(command: list[str]) -> int:
    """The first process of the namespace: brings loopback up, and buries whatever containers leave behind."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    process = subprocess.Popen(command)
    while True:
        try:
            pid, status = os.wait()
        except KeyboardInterrupt:  # the command got it as well, and decides
            continue
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments[0] == "--inside":
        return _supervise(arguments[1:])
    if why := missing():
        print(f"no real nodes here: {why}", file=sys.stderr, flush=True)
        return 1 if os.environ.get("CI") == "true" else subprocess.run(arguments).returncode

    def say(line: str) -> None:
        print(line, flush=True)

    binaries.provide(PROGRAMS, say)
    enter(arguments, images.provide(images.PROJECT, say))


if __name__ == "__main__":
    raise SystemExit(abs(main(sys.argv[1:])))
