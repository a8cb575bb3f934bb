"""Changes under load where the new copies need the devices of the old: what each strategy promises."""

from __future__ import annotations

import pytest

from beds.load import Load
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
WEIGHTED = {"rule": "WeightedMean", "predictions": "Probabilities"}
UNHEARD = ("ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected", "OSError(113")
"""What a client sees that nobody has heard: no pod listens, or one has just ceased to, or kube-proxy knows no way."""
MEAN = {"rule": "Mean", "predictions": "Probabilities"}


def blocked(pair: Served, words: str) -> str:
    """What the condition says as soon as it says that there is no room, in these words."""

    def said() -> bool:
        _, reason, message = pair.space.condition(pair.name, "Progressing")
        return reason == "UpgradeBlocked" and words in message

    wait_for(said, f"UpgradeBlocked: {words}", 30)
    return pair.space.condition(pair.name, "Progressing")[2]


def complete(pair: Served, load: Load) -> None:
    """Wait until the new revision alone serves, with both copies; from then on only its answers are right."""
    pair.wait("Progressing", "False")
    pair.has(2)
    pair.settled()
    load.more(80)


def uids(pair: Served) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pair.pods()}


def test_a_rolling_update_replaces_one_copy_after_the_other_and_fails_no_request(pair: Served) -> None:
    before = uids(pair)
    with pair.load() as load:
        load.more()
        weights = [member | {"weight": 1.0 + i} for i, member in enumerate(pair.manifest["spec"]["members"])]
        pair.apply(members=weights, combination=WEIGHTED)
        blocked(pair, "strategy RollingUpdate takes ")
        complete(pair, load)
    assert not load.failures, load.summary()
    assert not uids(pair) & before


def test_on_delete_waits_for_somebody_and_fails_no_request(pair: Served) -> None:
    before = pair.containers()
    with pair.load() as load:
        load.more()
        pair.apply(combination=MEAN, rollout={"strategy": "OnDelete"})
        blocked(pair, "strategy OnDelete waits until ")
        load.more(80)
        assert pair.containers() == before
        for node in ("node-2", "node-3"):
            pod = pair.on(node)
            pair.cluster.plane.kubectl("delete", "pod", pod["metadata"]["name"], namespace=pair.space.namespace)
            pair.has(2)
        complete(pair, load)
    assert not load.failures, load.summary()
    assert not pair.containers() & before


def test_recreate_answers_nothing_between_the_old_and_the_new_and_all_else(pair: Served) -> None:
    before = uids(pair)
    with pair.load() as load:
        load.more()
        changed = load.now
        pair.apply(combination=WEIGHTED, rollout={"strategy": "Recreate"})
        blocked(pair, "strategy Recreate takes ")
        complete(pair, load)
        gap = load.gap()
        print(f"recreated: {gap:.1f} s without service; {load.summary()}")
        load.more()
    assert not uids(pair) & before
    assert load.failures and load.spared(*pair.pods())
    assert all(f.reason.startswith(UNHEARD) for f in load.failures), load.summary()
    first, last = load.failures[0], load.failures[-1]
    assert changed < first.sent and last.sent - first.sent < gap + 1, "only between the old and the new"
