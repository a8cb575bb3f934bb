"""Kubernetes' own programs, built once from their Go modules into a cache folder.

Run as a script it builds what is named, or everything: `python tests/cluster/beds/binaries.py kube-apiserver etcd`.
Where `KUBEBUILDER_ASSETS` names a folder that holds a program, that one is taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MODULES = Path(__file__).parent.parent / "binaries"
SOURCES = Path(__file__).parent.parent
MINIMUM_GO = (1, 26)
CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "kube-proxy")
CONTROL_PLANE = ("etcd", *KUBERNETES[:4])
# Debian's containerd, 1.6, knows no CDI, by which claimed devices come into containers.
INSTALLABLE = {
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
    "helm": ("helm.sh/helm/v4/cmd/helm", "v4.3.1"),
    "containerd": ("github.com/containerd/containerd/v2/cmd/containerd", "v2.2.9"),
    "containerd-shim-runc-v2": ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "v2.2.9"),
    "ctr": ("github.com/containerd/containerd/v2/cmd/ctr", "v2.2.9"),
    "coredns": ("github.com/coredns/coredns", "v1.15.0"),
    "kubeconform": ("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0"),
    "promtool": ("github.com/prometheus/prometheus/cmd/promtool", "v0.316.0"),
}
# Of this repository, by their module in tests/cluster and their folder in it.
OWN = {
    "gpu-device-plugin": ("plugins", "device"),
    "gpu-dra-driver": ("plugins", "dra"),
    "network-policies": ("enforcer", "."),
}
ALL = (*CONTROL_PLANE, *KUBERNETES[4:], *INSTALLABLE, *OWN)


class BuildError(Exception):
    """A program that could not be built; the message ends with what Go said."""


def version(name: str) -> str:
    """The version of a program, the one place being go.mod where it is built from a module of ours."""
    if name in INSTALLABLE:
        return INSTALLABLE[name][1]
    if name in OWN:
        module, folder = OWN[name]
        sources = (SOURCES / module / "go.mod", SOURCES / module / folder / "main.go")
        return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    module = "etcd" if name == "etcd" else "kubernetes"
    required = re.search(r"^require \S+ (v\S+)$", (MODULES / module / "go.mod").read_text(), re.MULTILINE)
    assert required, f"{MODULES / module / 'go.mod'} requires no version"
    return required[1]


def cached(name: str) -> Path:
    """Where a program lies once it is built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ensembles" / "binaries" / f"{name}-{version(name)}-{platform.machine()}" / name


def find(name: str) -> Path | None:
    """A program that is there already."""
    candidates = [cached(name)]
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        candidates.insert(0, Path(assets) / name)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def missing(names: Iterable[str]) -> str | None:
    """One line that says what to install before these programs can run or be built here; None where nothing lacks."""
    absent = [name for name in names if find(name) is None]
    if not absent or (found := _go_version()) >= MINIMUM_GO:
        return None
    wanted = ".".join(map(str, MINIMUM_GO))
    instead = f"this Go is {'.'.join(map(str, found))}" if found != (0, 0) else "there is no go on the PATH"
    return f"install Go {wanted} or set KUBEBUILDER_ASSETS to a folder with {', '.join(absent)} ({instead})"


def provide(names: Iterable[str], say: Callable[[str], None]) -> dict[str, Path]:
    """The programs by name; builds those that are not there and says so, a line each.

    Raises:
        BuildError: Go could not build one.
    """
    found = {}
    for name in names:
        path = find(name)
        if path is None:
            path = cached(name)
            _build(name, path, say)
        found[name] = path
    return found


def _build(name: str, target: Path, say: Callable[[str], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # somebody else built it while this process waited
            return
        say(f"building {name} {version(name)} (once, some minutes) ...")
        start = time.monotonic()
        # Beside the target, so that the program appears whole or not at all.
        half_done = target.parent / "build"
        shutil.rmtree(half_done, ignore_errors=True)
        half_done.mkdir()
        _go(name, half_done / name)
        (half_done / name).replace(target)
        half_done.rmdir()
        say(f"built {name} in {time.monotonic() - start:.0f} s")


def _go(name: str, target: Path) -> None:
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    if name in INSTALLABLE:
        package = "@".join(INSTALLABLE[name])
        command = ["go", "install", "-trimpath", "-ldflags", "-s -w", package]
        # Outside of any module; `go install` itself chooses no file name.
        folder, environment["GOBIN"] = target.parent, str(target.parent)
    else:
        package, folder = _package(name)
        command = ["go", "build", "-trimpath", "-ldflags", _linker_flags(name), "-o", str(target), package]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"go cannot build {name} {version(name)}: {result.stderr[-2000:]}")


def _package(name: str) -> tuple[str, Path]:
    if name in OWN:
        module, folder = OWN[name]
        return f"./{folder}", SOURCES / module
    if name == "etcd":
        return "go.etcd.io/etcd/server/v3", MODULES / "etcd"
    return f"k8s.io/kubernetes/cmd/{name}", MODULES / "kubernetes"


def _linker_flags(name: str) -> str:
    if name not in KUBERNETES:
        return "-s -w"
    # Without these the API server calls itself v0.0.0, which clients take at its word.
    major, minor = version(name).removeprefix("v").split(".")[:2]
    stamp = {"gitVersion": version(name), "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamp.items())])


def _go_version() -> tuple[int, int]:
    if shutil.which("go") is None:
        return (0, 0)
    said = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


if __name__ == "__main__":
    for program, place in provide(sys.argv[1:] or ALL, lambda line: print(line, flush=True)).items():
        print(f"{program}: {place}")
