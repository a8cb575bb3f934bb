"""What the shards of a copy on several nodes need beside their pods, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sample_plans import DIGESTS, SETTINGS, UID, cpu, make_ensemble, make_plan_on

from ensemble_operator.controller.changes import Changes, There, changes
from ensemble_operator.controller.decision import Decision
from ensemble_operator.controller.records import EnsembleRecord, OwnPod
from ensemble_operator.manifests.revision import revision

ENSEMBLE = make_ensemble()
RECORD = EnsembleRecord(UID, "team", "trio", "2026-01-01T00:00:00Z", 1, False, "{}", "{}")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CELLS = [("a", "cpu0", "one", 8), ("a", "cpu0", "two", 8)]


def decided(last_node: str, there: dict[str, OwnPod]) -> Changes:
    """One copy with its last member on that node."""
    devices = [cpu("cpu0", "a"), cpu("cpu0", "b")]
    plan = make_plan_on(devices, [*CELLS, (last_node, "cpu0", "three", 8)])
    decision = Decision(digests=DIGESTS, revision=revision(ENSEMBLE.spec, DIGESTS), plans={0: plan})
    return changes(RECORD, ENSEMBLE, decision, There(there, {}), SETTINGS, NOW)


def running(made: Changes) -> dict[str, OwnPod]:
    """The pods that a decision makes, as they are seen once they run."""
    found = {}
    for pod in of_kind(made, "Pod"):
        meta = pod["metadata"]
        found[meta["name"]] = OwnPod(
            uid=meta["name"],
            created="2026-01-01T00:00:00Z",
            owner=UID,
            labels=meta["labels"],
            annotations=meta["annotations"],
            node="a",
            address="10.0.0.1",
            phase="Running",
            ready=True,
            deleting=False,
            trouble=None,
            ended=None,
        )
    return found


def of_kind(made: Changes, kind: str) -> list[dict[str, Any]]:
    return [o for o in made.apply if o["kind"] == kind]


def services(made: Changes) -> set[str]:
    return {o["metadata"]["name"] for o in of_kind(made, "Service")}


def test_new_shards_get_a_service_and_a_token_before_them() -> None:
    made = decided("b", {})
    kinds = [o["kind"] for o in made.apply]
    assert kinds.count("Pod") == 2
    assert kinds.index("Secret") < kinds.index("Pod")
    assert services(made) == {"trio", "trio-shards"}
    (policy,) = of_kind(made, "NetworkPolicy")
    (head,) = (p for p in of_kind(made, "Pod") if p["metadata"]["labels"]["ensembles.dev/role"] == "head")
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert not policy["spec"]["podSelector"]["matchLabels"].items() <= head["metadata"]["labels"].items()


def test_shards_that_run_keep_their_token() -> None:
    made = decided("b", running(decided("b", {})))
    assert of_kind(made, "Pod") == of_kind(made, "Secret") == []


def test_a_copy_on_one_node_has_no_secret() -> None:
    made = decided("a", {})
    assert of_kind(made, "Secret") == of_kind(made, "NetworkPolicy") == []
    assert services(made) == {"trio"}


def test_the_shards_service_stays_until_the_last_shard_is_gone() -> None:
    assert services(decided("a", running(decided("b", {})))) == {"trio", "trio-shards"}
