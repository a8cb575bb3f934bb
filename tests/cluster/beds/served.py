"""An ensemble as its user sees it: applied by kubectl, asked through its Service."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np
import tritonclient.http

from beds.cluster import Cluster
from beds.load import Load, Rows
from beds.models import CLASSIFIERS, LARGE, combined, ensemble, profile
from beds.operating import Space
from beds.processes import wait_for

READY_SECONDS = 180.0


class Served:
    """One ensemble of classifiers.

    Attributes:
        space: Its namespace: status, conditions, pods.
        name: Of the ensemble, and of its Service.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, members: int = 3, **spec: Any) -> None:
        """Nothing is applied yet."""
        self.cluster = cluster
        self.space = Space(cluster.plane, namespace)
        self.name = name
        self.manifest = ensemble(cluster.models, namespace, name, members, **spec)
        self._answers: list[dict[str, Any]] = []

    def profiles(self, device_type: str = "cpu-1", **costs: float) -> None:
        """Write profiles of all classifiers, so that nothing is measured."""
        documents = [profile(one, self.space.namespace, device_type, **costs) for one in (*CLASSIFIERS, *LARGE)]
        self._kubectl("apply", "-f", "-", manifests=documents)

    def apply(self, **spec: Any) -> None:
        """Apply it with these parts of the spec changed; from now on both its old and its new answers are right."""
        self.manifest["spec"] |= spec
        self._answers.append(json.loads(json.dumps(self.manifest["spec"])))
        self._kubectl("apply", "-f", "-", manifests=[self.manifest])

    def settled(self) -> None:
        """From now on only the answers of the spec as it is are right."""
        del self._answers[:-1]

    def wait(self, kind: str = "Ready", status: str = "True", seconds: float = READY_SECONDS) -> None:
        """Wait until a condition is so, for the spec as it is now."""
        self.space.wait(self.name, kind, status, seconds)

    def pods(self) -> list[dict[str, Any]]:
        """Its pods that are not going away."""
        return self.space.pods(self.name)

    def on(self, node: str) -> dict[str, Any]:
        """Its pod on a node."""
        (pod,) = (pod for pod in self.pods() if pod["spec"]["nodeName"] == node)
        return pod

    def has(self, copies: int) -> None:
        """Wait until so many copies, of one pod each, serve and no other pod is there."""

        def so() -> bool:
            ready = self.space.status(self.name).get("readyReplicas")
            return ready == copies and len(self.space.items("pods", self.name)) == copies

        wait_for(so, f"{copies} copies of {self.name}", READY_SECONDS)

    def containers(self) -> set[tuple[str, int]]:
        """Who serves: each pod's uid and how often its container was restarted."""
        return {
            (p["metadata"]["uid"], s["restartCount"]) for p in self.pods() for s in p["status"]["containerStatuses"]
        }

    def right(self, rows: Rows, answer: Rows) -> bool:
        """Whether an answer is that of the spec, or of one before it that is not `settled` yet."""
        known = tuple(self._answers)  # the threads of a load ask while `settled` drops some
        return any(np.allclose(answer, combined(spec, rows), atol=1e-4) for spec in known)

    def predict(self, rows: Rows) -> Rows:
        """Ask through the Service, with Triton's own client."""
        tensor = tritonclient.http.InferInput("x", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        with tritonclient.http.InferenceServerClient(self._url().removeprefix("http://")) as client:
            answer: Rows = client.infer(self.name, [tensor]).as_numpy("y")
        return answer

    def load(self, **options: Any) -> Load:
        """A steady load through the Service."""
        return Load(f"{self._url()}/v2/models/{self.name}/infer", self.right, **options)

    def delete(self) -> None:
        """Delete it and wait until its pods are gone: others need the devices."""
        self.space.delete(self.name)
        wait_for(lambda: not self.space.items("pods", self.name), f"no pod of {self.name}")

    def _url(self) -> str:
        return self.cluster.url(self.space.namespace, self.name)

    def _kubectl(self, *arguments: str, manifests: list[dict[str, Any]]) -> None:
        try:
            self.cluster.plane.kubectl(*arguments, manifests=manifests, namespace=self.space.namespace)
        except subprocess.CalledProcessError as error:
            raise AssertionError(error.stderr) from None
