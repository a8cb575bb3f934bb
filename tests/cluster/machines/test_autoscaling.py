"""The example's HorizontalPodAutoscaler on the runtime's own metrics: load makes copies, its end takes them away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from beds.custom_metrics import CustomMetrics
from beds.images import REPOSITORY
from beds.load import Load, Rows
from beds.machines import OUTSIDE_ADDRESS, Machines
from beds.operating import A100
from beds.processes import wait_for
from beds.scraping import samples
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
EXAMPLE = REPOSITORY / "examples" / "kubernetes" / "autoscaling.yaml"
HASTE = {"stabilizationWindowSeconds": 2, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 2}]}
CLIENTS = 24
"""Each waits for its answer before it asks again: one copy has them all in hand, each of two the half."""


@pytest.fixture
def custom_metrics(machines: Machines) -> Iterator[None]:
    """The API that an adapter would serve."""
    with CustomMetrics(machines.plane, OUTSIDE_ADDRESS):
        yield


def answered(pod: dict[str, Any]) -> float:
    """Requests."""
    return sum(value for _, value in samples(pod, "ensemble_inference_request_success_total"))


def foreseen(rows: Rows, answer: Rows) -> bool:
    """Whether an answer is that of a simulated member: depends on the row alone."""
    mean = rows.mean(axis=1, dtype=np.float64)[:, None] + np.arange(answer.shape[1]) / answer.shape[1]
    return np.allclose(answer, mean, atol=1e-4)


@pytest.mark.usefixtures("custom_metrics")
def test_load_makes_another_copy_and_its_end_takes_it_away(served: Callable[..., Served]) -> None:
    """A simulated device, which takes its time and no core: the queue is as long as there are clients."""
    (autoscaler,) = yaml.safe_load_all(EXAMPLE.read_text())
    name = autoscaler["spec"]["scaleTargetRef"]["name"]
    values = {"rule": "Mean", "predictions": "Values"}
    simulated = {"simulated": [{"type": A100, "memoryMib": 40_960}]}
    digits = served(name, 1, devices=simulated, combination=values)
    digits.profiles(A100, seconds=0.02)
    digits.apply()
    digits.has(1)
    autoscaler["spec"]["behavior"] = {"scaleUp": HASTE, "scaleDown": HASTE}  # else a test of a quarter of an hour
    plane, namespace = digits.cluster.plane, digits.space.namespace
    plane.kubectl("apply", "-f", "-", manifests=[autoscaler], namespace=namespace)
    url = f"{digits.cluster.url(namespace, name)}/v2/models/{name}/infer"
    with Load(url, foreseen, clients=CLIENTS, per_second=1000) as load:
        digits.has(2)
        before = [answered(pod) for pod in digits.pods()]
        wait_for(
            lambda: all(now > then + 20 for now, then in zip(map(answered, digits.pods()), before, strict=True)),
            "answers from both copies",
        )
        assert digits.space.ensemble(name)["spec"]["replicas"] == 2
        load.more(100)
        assert len(digits.pods()) == 2, "each has a queue as short as was asked for"
    digits.has(1)
    assert not load.failures, load.summary()
    assert digits.space.ensemble(name)["spec"]["replicas"] == 1
    (seen,) = plane.admin.items(f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers")
    assert {c["type"]: c["status"] for c in seen["status"]["conditions"]}["ScalingActive"] == "True"
