"""Changes under load through the Service: no request fails, whether a change succeeds or is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from beds.models import CLASSIFIERS, member
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up

ONE_CORE = {"kinds": ["CPU"], "max": 1}


def uids(served: Served) -> set[str]:
    return {pod["metadata"]["uid"] for pod in served.pods()}


def reason(served: Served, kind: str) -> str:
    """Of a condition; nothing while it speaks of an older spec."""
    now = served.space.ensemble(served.name)
    fresh = now["status"].get("observedGeneration") == now["metadata"]["generation"]
    return served.space.condition(served.name, kind)[1] if fresh else ""


def members(served: Served, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [member(served.cluster.models, one, **fields) for one in CLASSIFIERS[:count]]


def test_weight_member_and_rule_change_under_load_without_a_failed_request(served: Callable[..., Served]) -> None:
    ensemble = served("changes", members=2, devices=ONE_CORE)
    ensemble.apply()
    ensemble.wait()
    changes: list[dict[str, Any]] = [
        {"combination": {"rule": "WeightedMean", "predictions": "Probabilities"}},
        {"members": [member(ensemble.cluster.models, one, weight=1.0 + i) for i, one in enumerate(CLASSIFIERS[:2])]},
        {"members": members(ensemble, 3)},
    ]
    with ensemble.load() as load:
        for change in changes:
            load.more()
            before = uids(ensemble)
            ensemble.apply(**change)
            wait_for(lambda: reason(ensemble, "Progressing") == "Complete", f"the change {change}", 120)
            assert not uids(ensemble) & before, "the pods are other ones"
            ensemble.settled()
            load.more()
    assert not load.failures, load.summary()


def test_a_change_that_cannot_start_is_rolled_back_under_load_without_a_failed_request(
    served: Callable[..., Served],
) -> None:
    ensemble = served("returns", members=2, devices=ONE_CORE, rollout={"progressTimeoutSeconds": 10})
    ensemble.apply()
    ensemble.wait()
    before = ensemble.containers()
    broken = members(ensemble, 2)
    broken[1]["model"]["uri"] += ".gone"
    with ensemble.load() as load:
        ensemble.apply(members=broken)
        wait_for(lambda: len(ensemble.pods()) == 2, "the new beside the old", 60)
        wait_for(lambda: reason(ensemble, "Degraded") == "RolledBack", "it is given up", 120)
        wait_for(lambda: reason(ensemble, "Progressing") == "RolledBack", "all is as it was", 60)
        load.more()
    assert not load.failures, load.summary()
    assert ensemble.containers() == before, "what served was never touched"
    _, _, message = ensemble.space.condition(ensemble.name, "Degraded")
    assert "was not ready within 10 s" in message and "404" in message
    assert ("Warning", "RolledBack") in {(event["type"], event["reason"]) for event in ensemble.space.events()}
