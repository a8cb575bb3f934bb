"""A cluster as its administrator reaches it: plain requests, the real kubectl, and a kubeconfig for other programs."""

from __future__ import annotations

import abc
import json
import os
import secrets
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from beds.client import Client, Manifest
from beds.processes import wait_for


class Access(abc.ABC):
    """Any cluster: one that a bed has brought up, or a user's.

    Attributes:
        admin: A client that may do everything.
        folder: For files that go with the tests.
    """

    def __init__(self, admin: Client, kubectl: Path, folder: Path) -> None:
        self.admin = admin
        self.folder = folder
        self._kubectl = kubectl

    @abc.abstractmethod
    def kubeconfig(self) -> Path:
        """A file for kubectl, clients and operators: the administrator's."""

    def kubectl(self, *arguments: str, manifests: Sequence[Manifest] = (), namespace: str = "default") -> str:
        """What the real kubectl prints; manifests go to its standard input (name it: `apply -f -`).

        Raises:
            subprocess.CalledProcessError: It fails; `stderr` says why.
        """
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}) if manifests else None
        command = [str(self._kubectl), "--kubeconfig", str(self._admin_file), "-n", namespace, *arguments]
        # Its discovery cache must not outlive the cluster, nor be the user's.
        environment = os.environ | {"KUBECACHEDIR": str(self.folder / "kubectl-cache")}
        return subprocess.run(
            command, input=given, env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def namespace(self, *, enforce: str | None = None) -> str:
        """A fresh namespace with its `default` ServiceAccount; `enforce` names a pod security standard."""
        labels = {"pod-security.kubernetes.io/enforce": enforce} if enforce else {}
        name = f"test-{secrets.token_hex(4)}"
        self.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_for(lambda: self.admin.exists(account), f"the default ServiceAccount of {name}")
        return name

    @cached_property
    def _admin_file(self) -> Path:
        return self.kubeconfig()
