"""`helm test`, as a user runs it after an install: a model, a profile, a plan, a pod, a prediction."""

from __future__ import annotations

import subprocess

import pytest

from beds.cluster import Cluster

pytestmark = pytest.mark.timeout(900)


def test_helm_test_serves_an_ensemble_and_reads_a_prediction(cluster: Cluster) -> None:
    plane, chart = cluster.plane, cluster.chart
    try:
        chart.helm("test", chart.release, "--timeout", "300s", timeout=400)
    except subprocess.CalledProcessError as error:
        marked = ("-l", f"ensembles.dev/test={chart.release}", "--tail=-1")
        pytest.fail(f"{error.stdout}{error.stderr}\n{plane.kubectl('logs', *marked, namespace=chart.namespace)}")
    assert not plane.kubectl("get", "ie", "--output=name", namespace=chart.namespace)  # it cleans up
