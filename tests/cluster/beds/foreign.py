"""A user's cluster, which a kubeconfig names, as tests see it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from beds.access import Access
from beds.client import Client, Manifest
from beds.models import CLASSIFIERS
from beds.processes import Program


class Foreign(Access):
    """A context manager. `kubectl proxy` signs in, however the kubeconfig says that is done, and leads to Services."""

    def __init__(self, kubectl: Path, kubeconfig: Path, folder: Path) -> None:
        self._file = kubeconfig
        command = [kubectl, "--kubeconfig", kubeconfig, "proxy", "--port=0"]
        self._proxy = Program("kubectl proxy", command, folder / "proxy.log")
        super().__init__(Client("", kubeconfig, ""), kubectl, folder)

    def __enter__(self) -> Self:
        self._proxy.start()
        self._proxy.wait_until(lambda: self._address() is not None, "serves")
        self.admin.url = f"http://{self._address()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.kill()

    def kubeconfig(self) -> Path:
        """The user's own file."""
        return self._file

    def service_url(self, namespace: str, name: str) -> str:
        """The address of a Service's port 8000, by way of the API server, which chooses among the pods."""
        return f"{self.admin.url}/api/v1/namespaces/{namespace}/services/{name}:8000/proxy"

    def hand_out_models(self, namespace: str, image: str) -> str:
        """A pod that hands out the classifiers; returns its address."""
        files = {f"{one.name}.onnx": base64.b64encode(one.content).decode() for one in CLASSIFIERS}
        meta = {"name": "models", "namespace": namespace}
        container: Manifest = {
            "name": "server",
            "image": image,
            "command": ["python", "-m", "http.server", "8080", "--directory", "/models"],
            "volumeMounts": [{"name": "models", "mountPath": "/models"}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        pod = {
            "containers": [container],
            "securityContext": security,
            "volumes": [{"name": "models", "configMap": {"name": "models"}}],
        }
        service = {"selector": {"app": "models"}, "ports": [{"port": 8080}]}
        self.admin.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "binaryData": files})
        self.admin.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta | {"labels": {"app": "models"}}, "spec": pod}
        )
        self.admin.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
        self.kubectl("wait", "pod/models", "--for=condition=Ready", "--timeout=50s", namespace=namespace)
        return f"http://models.{namespace}.svc:8080"

    def _address(self) -> str | None:
        found = re.search(r"Starting to serve on (\S+)", self._proxy.tail())
        return found[1] if found else None
