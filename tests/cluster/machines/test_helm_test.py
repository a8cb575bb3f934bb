"""`helm test`, as a user runs it after an install: a model, a profile, a plan, a pod, a prediction."""

from __future__ import annotations

import subprocess

import pytest

from beds import binaries
from beds.chart import Chart
from beds.machines import Machines

pytestmark = pytest.mark.timeout(900)


def test_helm_test_serves_an_ensemble_and_reads_a_prediction(machines: Machines) -> None:
    plane = machines.plane
    namespace = plane.namespace(enforce="restricted")
    chart = Chart(binaries.provide(["helm"], print)["helm"], plane, namespace, "tried")
    chart.install(flags=("--take-ownership", "--force-conflicts"))
    mark = plane.mark()
    try:
        chart.helm("test", "tried", "--timeout", "300s", timeout=400)
    except subprocess.CalledProcessError as error:
        said = plane.kubectl("logs", "-l", "ensembles.dev/test=tried", "--tail=-1", namespace=namespace)
        pytest.fail(f"{error.stdout}{error.stderr}\n{said}\n{chart.operator()}")
    operator = f"system:serviceaccount:{namespace}:tried-ensembles"
    assert not [request for request in plane.requests(operator, since=mark) if request.code == 403]
    assert not plane.kubectl("get", "ie", "--output=name", namespace=namespace)  # it cleans up
    chart.helm("uninstall", "tried")
