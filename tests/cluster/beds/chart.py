"""The project's chart, put into a cluster of real nodes by the real Helm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from beds.access import Access
from beds.images import OPERATOR, REPOSITORY, RUNTIME
from beds.processes import StartError

CHART = REPOSITORY / "charts" / "ensembles"
SELECTOR = ("-l", "app.kubernetes.io/name=ensemble-operator")
RELEASE, NAMESPACE = "ensembles", "ensembles-system"


class Chart:
    """One release of the chart."""

    def __init__(
        self,
        helm: Path,
        plane: Access,
        namespace: str = NAMESPACE,
        release: str = RELEASE,
        values: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """Nothing is installed yet; `values` and `flags` are those of every `install`."""
        self._helm = helm
        self._plane = plane
        self._values = values or {}
        self._flags = flags
        self.namespace = namespace
        self.release = release

    def install(self, values: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> str:
        """Install it or upgrade it with the images that the nodes have, and wait until the operator is ready."""
        pairs = {**images(OPERATOR, RUNTIME), **self._values, **(values or {})}
        settings = [part for key, value in pairs.items() for part in ("--set-string", f"{key}={value}")]
        where = ["--install", "--create-namespace", self.release, str(CHART)]
        try:
            return self.helm("upgrade", *where, "--wait", "--timeout", "180s", *settings, *self._flags, *flags)
        except subprocess.CalledProcessError as error:
            raise StartError(f"{error.stderr}\n{self.operator()}") from None

    @property
    def fullname(self) -> str:
        """The name of the operator's Deployment and of its ServiceAccount."""
        return self.release if "ensembles" in self.release else f"{self.release}-ensembles"

    @property
    def user(self) -> str:
        """The operator's ServiceAccount, as the audit log names it."""
        return f"system:serviceaccount:{self.namespace}:{self.fullname}"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No operator of this release runs meanwhile."""
        deployment = f"deployment/{self.fullname}"
        self._plane.kubectl("scale", deployment, "--replicas=0", namespace=self.namespace)
        pods = ("pods", *SELECTOR, "--for=delete", "--timeout=60s")
        self._plane.kubectl("wait", *pods, namespace=self.namespace)
        try:
            yield
        finally:
            self._plane.kubectl("scale", deployment, "--replicas=1", namespace=self.namespace)
            self._plane.kubectl("rollout", "status", deployment, "--timeout=60s", namespace=self.namespace)

    def operator(self) -> str:
        """What the operator's pods are at, and the end of their log."""
        pods = self._plane.kubectl("describe", "pods", *SELECTOR, namespace=self.namespace)
        try:
            log = self._plane.kubectl("logs", *SELECTOR, "--tail=30", namespace=self.namespace)
        except subprocess.CalledProcessError as error:  # no container has started
            log = error.stderr
        return f"{pods[-3000:]}\n{log}"

    def helm(self, *arguments: str, timeout: float = 300.0) -> str:
        """What the real Helm prints.

        Raises:
            subprocess.CalledProcessError: It fails; `stderr` says why.
        """
        home = str(self._plane.folder / "helm")
        environment = os.environ | {f"HELM_{kind}_HOME": home for kind in ("CACHE", "CONFIG", "DATA")}
        command = [str(self._helm), "--kubeconfig", str(self._plane.kubeconfig()), "--namespace", self.namespace]
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=timeout
        ).stdout


def images(operator: str, runtime: str) -> dict[str, str]:
    """The values that name the images; also the pods with GPUs get the small one, as nobody has these GPUs."""
    return {**_image("image", operator), **_image("runtime.onnx", runtime), **_image("runtime.full", runtime)}


def _image(key: str, name: str) -> dict[str, str]:
    registry, _, rest = name.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {f"{key}.registry": registry, f"{key}.repository": repository, f"{key}.tag": tag}
