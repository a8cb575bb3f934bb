"""A cluster with the chart in it, as the end-to-end tests see it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from beds.access import Access
from beds.chart import Chart
from beds.machines import Machines

OPERATORS = "operators"
"""Label of the nodes that the operator's pod may be on."""
# A node that is not heard of keeps the operator for two seconds, and not for the chart's thirty.
TOLERATIONS = [
    {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    for state in ("unreachable", "not-ready")
]
OURS = ("-l", "app.kubernetes.io/part-of=ensembles")


@dataclass(frozen=True)
class Cluster:
    """The cluster.

    Attributes:
        plane: Its API.
        chart: The release that is installed in it.
        models: Where its pods fetch the classifiers.
        url: The address of a Service's port 8000 for the tests, by namespace and name.
    """

    plane: Access
    chart: Chart
    models: str
    url: Callable[[str, str], str]

    @classmethod
    def installed(cls, machines: Machines, helm: Path) -> Self:
        """The chart in the bed's machines; the operator is a pod on node-1."""
        machines.plane.kubectl("label", "node", "node-1", f"{OPERATORS}=yes")
        selector = {f"nodeSelector.{OPERATORS}": "yes"}
        tolerations = ("--set-json", f"tolerations={json.dumps(TOLERATIONS)}")
        chart = Chart(helm, machines.plane, values=selector, flags=tolerations)
        chart.install()
        return cls(machines.plane, chart, machines.models.url, machines.service_url)

    def report(self) -> str:
        """All that helps to understand a failure."""
        looks = [
            ("get", "nodes,ie,pods,services", "-A", "-o", "wide"),
            ("describe", "ie", "-A"),
            ("get", "events", "-A", "--sort-by=.lastTimestamp"),
        ]
        namespaces = ("get", "pods", "-A", *OURS, "-o", "jsonpath={.items[*].metadata.namespace}")
        for namespace in sorted(set(self.plane.kubectl(*namespaces).split())):
            log = ("logs", "-n", namespace, *OURS, "--all-containers", "--prefix", "--tail=25", "--ignore-errors")
            looks += [log, (*log, "--previous")]
        return "\n".join([*map(self._look, looks), self.chart.operator()])

    def _look(self, arguments: tuple[str, ...]) -> str:
        try:
            said = self.plane.kubectl(*arguments)
        except subprocess.CalledProcessError as error:
            said = error.stdout + error.stderr
        return f"$ kubectl {' '.join(arguments)}\n{said[-20_000:]}"
