"""The operator as a process beside a control plane, and ensembles to give it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from beds.client import Manifest
from beds.controlplane import ControlPlane
from beds.processes import Program, wait_for

ENSEMBLES = "/apis/ensembles.dev/v1alpha1"
A100 = "NVIDIA-A100-SXM4-40GB"


class Operator:
    """The real operator, as it would be started in its pod; a context manager."""

    def __init__(
        self, plane: ControlPlane, *, token: str | None = None, url: str | None = None, **settings: str | float
    ) -> None:
        """Nothing is started yet.

        Args:
            plane: The control plane.
            token: Of the user that it runs as; by default the administrator's.
            url: Another way to the API server.
            settings: ENSEMBLES_* by their lower-case names.
        """
        self.plane = plane
        kubeconfig = plane.kubeconfig(token, url=url)
        given: dict[str, str | float] = {
            "runtime_image_onnx": "runtime:onnx",
            "runtime_image_full": "runtime:full",
            "liveness_port": 0,
            "metrics_port": 0,
            "debounce_seconds": 0.05,
            **settings,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ENSEMBLES_")}
        environment |= {f"ENSEMBLES_{name.upper()}": str(value) for name, value in given.items()}
        environment |= {"KUBECONFIG": str(kubeconfig)}
        self.program = Program(
            "operator",
            [sys.executable, "-m", "ensemble_operator.controller"],
            plane.folder / f"operator-{kubeconfig.name}.log",
            environment,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.kill()
        if kind is not None:
            print(f"--- the operator's log:\n{self.program.tail()}")

    def start(self) -> None:
        """Start it; it may not be listening yet."""
        self.program.start()

    def restart(self) -> None:
        """Kill it, and start its successor."""
        self.program.kill()
        self.start()

    def log(self) -> list[dict[str, Any]]:
        """What it has logged, since its first start."""
        lines = self.program.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metrics(self) -> dict[str, float]:
        """Its figures, by name and labels as Prometheus writes them."""
        found = re.findall(r"^([a-z][^ #]*(?:\{[^}]*\})?) ([0-9.e+-]+)$", self._get("metrics"), re.MULTILINE)
        return {name: float(value) for name, value in found}

    def healthy(self) -> bool:
        """What its liveness probe says."""
        return self._get("healthz") == "ok"

    def idle(self, quiet: float = 1.0) -> None:
        """Wait until no cycle has run for a while."""
        state = {"cycles": -1.0, "since": 0.0}

        def still() -> bool:
            try:
                cycles = self.metrics().get("ensembles_operator_reconcile_seconds_count", 0.0)
            except OSError:
                return False
            if cycles != state["cycles"] or cycles == 0:
                state.update(cycles=cycles, since=time.monotonic())
            return time.monotonic() - state["since"] > quiet

        wait_for(still, "the operator at rest")

    def _get(self, door: str) -> str:
        ports = next((line for line in reversed(self.log()) if line["message"] == "starts"), None)
        if ports is None:
            raise OSError("not listening yet")
        port = ports["livenessPort" if door == "healthz" else "metricsPort"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{door}", timeout=10) as answer:
            return str(answer.read().decode())


def digest(name: str) -> str:
    """A digest for a model that nobody has."""
    return hashlib.sha256(name.encode()).hexdigest()


def ensemble(name: str, namespace: str, members: Mapping[str, float] | None = None, **spec: Any) -> Manifest:
    """An ensemble of GPU members by name and weight."""
    members = members or {"a": 1.0, "b": 1.0}
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": [
                {
                    "name": member,
                    "weight": weight,
                    "model": {"uri": f"https://models/{member}.onnx", "format": "ONNX", "sha256": digest(member)},
                    "deviceKinds": ["GPU"],
                    "batchSizes": [1, 8],
                }
                for member, weight in members.items()
            ],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
            "combination": {"rule": "WeightedMean"},
            "devices": {"kinds": ["GPU"]},
            **spec,
        },
    }


def profile(
    member: str, namespace: str, device_type: str = A100, *, seconds: float = 0.002, memory_mib: float = 4096
) -> Manifest:
    """What a member costs on a GPU; by default rates have more digits than statuses show, and are whole numbers."""
    points = [{"batchSize": size, "seconds": seconds * size**0.5, "memoryMib": memory_mib} for size in (1, 8)]
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": f"{member}-{device_type.lower()}", "namespace": namespace},
        "spec": {"model": {"sha256": digest(member)}, "deviceType": device_type, "points": points},
    }


class Space:
    """One namespace as a test sees it."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self._own = f"{ENSEMBLES}/namespaces/{namespace}"

    def profiles(self, *members: str, **costs: Any) -> None:
        """Write profiles."""
        for member in members:
            self.plane.admin.apply(profile(member, self.namespace, **costs))

    def apply(self, name: str, members: Mapping[str, float] | None = None, **spec: Any) -> Manifest:
        """Apply an ensemble as a user does."""
        return self.plane.admin.apply(ensemble(name, self.namespace, members, **spec))

    def delete(self, name: str) -> None:
        """Delete an ensemble."""
        self.plane.admin.delete(f"{self._own}/inferenceensembles/{name}")

    def ensemble(self, name: str) -> Manifest:
        """An ensemble as it is now."""
        found: Manifest = self.plane.admin.get(f"{self._own}/inferenceensembles/{name}")
        return found

    def status(self, name: str) -> dict[str, Any]:
        """Its status."""
        found: dict[str, Any] = self.ensemble(name).get("status", {})
        return found

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition; of none, nothing."""
        for condition in self.status(name).get("conditions", ()):
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""

    def pods(self, name: str | None = None) -> list[Manifest]:
        """Pods of an ensemble, or of all, that are not going away."""
        return [pod for pod in self.items("pods", name) if "deletionTimestamp" not in pod["metadata"]]

    def items(self, plural: str, name: str | None = None, group: str = "/api/v1") -> list[Manifest]:
        """Objects that the operator made, of an ensemble or of all."""
        labels = "app.kubernetes.io/managed-by=ensemble-operator"
        labels += f",ensembles.dev/ensemble={name}" if name else ""
        return self.plane.admin.items(f"{group}/namespaces/{self.namespace}/{plural}", labelSelector=labels)

    def made(self, name: str) -> dict[str, list[str]]:
        """Names of all that an ensemble owns, by kind."""
        found = {
            "pods": self.items("pods", name),
            "configmaps": self.items("configmaps", name),
            "services": self.items("services", name),
            "poddisruptionbudgets": self.items("poddisruptionbudgets", name, "/apis/policy/v1"),
        }
        return {kind: sorted(o["metadata"]["name"] for o in objects) for kind, objects in found.items()}

    def events(self) -> list[Manifest]:
        """What users were told."""
        return self.plane.admin.items(f"/api/v1/namespaces/{self.namespace}/events")

    def clear(self) -> None:
        """Delete all ensembles, and wait until their pods are gone: other tests need the devices."""
        for found in self.plane.admin.items(f"{self._own}/inferenceensembles"):
            self.delete(found["metadata"]["name"])
        wait_for(lambda: not self.items("pods"), "no pod is left")

    def wait(self, name: str, kind: str = "Ready", status: str = "True", seconds: float = 120.0) -> None:
        """Wait until a condition is so, for the spec as it is now."""

        def so() -> bool:
            now = self.ensemble(name)
            seen = now.get("status", {})
            fresh = seen.get("observedGeneration") == now["metadata"]["generation"]
            return fresh and any(c["type"] == kind and c["status"] == status for c in seen.get("conditions", ()))

        try:
            wait_for(so, f"{name}: {kind} {status}", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the status: {json.dumps(self.status(name))}") from None
