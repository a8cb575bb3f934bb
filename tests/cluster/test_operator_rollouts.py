"""How a change is carried out, and given up, with the real operator on a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)
NODES = (gpu_node("roll-a", count=2), gpu_node("roll-b", count=2))

WRONG = {"imagePullSecrets": ["wrong"]}
"""With it no image can be pulled."""
ONE = {"devices": {"kinds": ["GPU"], "max": 1}}
BRIEF = {"progressTimeoutSeconds": 3}


def uids(space: Space, name: str) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in space.pods(name)}


def served(space: Space, name: str) -> str:
    """The revision that the Service leads to."""
    (service,) = space.items("services", name)
    found: str = service["spec"]["selector"]["ensembles.dev/revision"]
    return found


def revisions(space: Space, name: str) -> set[str]:
    """Those of the pods."""
    return {pod["metadata"]["labels"]["ensembles.dev/revision"] for pod in space.pods(name)}


def settle(space: Space, name: str) -> dict[str, str]:
    """Wait until all is as asked for; the uids of its pods by name."""
    space.wait(name)
    space.wait(name, "Progressing", "False")
    return uids(space, name)


def reason(space: Space, name: str, kind: str) -> str:
    return space.condition(name, kind)[1]


def rolled_back(space: Space, name: str) -> None:
    wait_for(lambda: reason(space, name, "Degraded") == "RolledBack", "the condition says so", 60)
    wait_for(lambda: reason(space, name, "Progressing") == "RolledBack", "it is as it was", 60)


def history(space: Space, name: str) -> list[dict[str, Any]]:
    return space.items("controllerrevisions", name, "/apis/apps/v1")


def test_a_change_that_cannot_start_is_given_up_while_what_runs_goes_on(space: Space, operator: Operator) -> None:
    space.apply("digits", **ONE, rollout=BRIEF)
    before, revision = settle(space, "digits"), served(space, "digits")

    space.apply("digits", {"a": 1.0, "b": 2.0}, **ONE, rollout=BRIEF, placement=WRONG)
    wait_for(lambda: len(space.pods("digits")) == 2, "the new beside the old")
    assert before.items() < uids(space, "digits").items() and served(space, "digits") == revision
    rolled_back(space, "digits")

    assert uids(space, "digits") == before and served(space, "digits") == revision
    _, _, message = space.condition("digits", "Degraded")
    assert "not ready within 3 s" in message and "ImagePullBackOff" in message
    assert space.status("digits")["reason"] == "RolledBack" and space.condition("digits", "Ready")[0] == "True"
    (told,) = [e for e in space.events() if (e["type"], e["reason"]) == ("Warning", "RolledBack")]
    assert told["involvedObject"]["name"] == "digits" and "ImagePullBackOff" in told["message"]

    operator.restart()
    operator.idle()
    assert uids(space, "digits") == before, "a new operator knows it as well"
    space.plane.kubectl("scale", "ie/digits", "--replicas=2", namespace=space.namespace)
    wait_for(lambda: space.status("digits").get("readyReplicas") == 2, "another copy of what served before")
    assert revisions(space, "digits") == {revision} and reason(space, "digits", "Degraded") == "RolledBack"

    space.apply("digits", {"a": 1.0, "b": 3.0}, **ONE, rollout=BRIEF)
    after = settle(space, "digits")
    assert not after.keys() & before.keys() and reason(space, "digits", "Degraded") == "AsPlanned"
    assert served(space, "digits") != revision
    assert len(history(space, "digits")) == 2, "what failed is forgotten"


def test_who_deletes_the_record_of_a_failure_has_it_tried_again(space: Space, operator: Operator) -> None:
    space.apply("digits", **ONE, rollout=BRIEF)
    settle(space, "digits")
    space.apply("digits", **ONE, rollout=BRIEF, placement=WRONG)
    rolled_back(space, "digits")
    (failed,) = [e for e in history(space, "digits") if "ensembles.dev/failure" in e["metadata"]["annotations"]]

    space.plane.kubectl(
        "delete", "controllerrevision", failed["metadata"]["name"], "--wait=false", namespace=space.namespace
    )
    wait_for(lambda: len(revisions(space, "digits")) == 2, "another try")
    rolled_back(space, "digits")


def test_without_room_the_old_goes_first_and_comes_back_when_the_new_cannot_start(
    space: Space, operator: Operator
) -> None:
    space.profiles("a", "b", memory_mib=30 * 1024)
    whole = {"devices": {"kinds": ["GPU"], "max": 2}, "replicas": 2, "rollout": BRIEF}
    space.apply("digits", **whole)
    before, revision = settle(space, "digits"), served(space, "digits")
    assert space.status("digits")["devices"] == 4

    space.apply("digits", **whole, placement=WRONG)
    wait_for(lambda: len(revisions(space, "digits")) == 2, "one copy is replaced")
    assert "UpgradeBlocked" in {e["reason"] for e in space.events()}
    assert before.items() & uids(space, "digits").items(), "the other copy serves"
    rolled_back(space, "digits")

    assert revisions(space, "digits") == {revision} == {served(space, "digits")}
    assert uids(space, "digits").keys() == before.keys()


def test_recreate_and_on_delete_go_back_too(space: Space, operator: Operator) -> None:
    space.apply("again", **ONE, rollout={"strategy": "Recreate", **BRIEF})
    space.apply("waits", **ONE, rollout={"strategy": "OnDelete", **BRIEF})
    before = {name: settle(space, name) for name in ("again", "waits")}
    revision = {name: served(space, name) for name in before}

    space.apply("again", **ONE, rollout={"strategy": "Recreate", **BRIEF}, placement=WRONG)
    space.apply("waits", **ONE, rollout={"strategy": "OnDelete", **BRIEF}, placement=WRONG)
    wait_for(lambda: reason(space, "waits", "Progressing") == "UpgradeBlocked", "it waits for somebody")
    (pod,) = before["waits"]
    assert uids(space, "waits") == before["waits"] and pod in space.condition("waits", "Progressing")[2]
    space.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}/pods/{pod}")
    for name in before:
        rolled_back(space, name)
        assert revisions(space, name) == {revision[name]} == {served(space, name)}


def test_on_delete_a_lost_copy_comes_back_as_it_was_also_while_a_change_waits(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    space.apply("digits", **ONE, rollout={"strategy": "OnDelete"})
    before, revision = settle(space, "digits"), served(space, "digits")

    def move() -> None:
        """Its node falls silent, until it serves elsewhere."""
        (pod,) = space.pods("digits")
        home = pod["spec"]["nodeName"]
        kwok.lose(home)
        try:
            wait_for(
                lambda: (
                    [p["spec"].get("nodeName") for p in space.pods("digits")] not in ([home], [None])
                    and len(space.pods("digits")) == 1
                ),
                "another node",
            )
            space.wait("digits")
        finally:
            kwok.find(home)

    move()
    assert revisions(space, "digits") == {revision} and not before.items() & uids(space, "digits").items()
    space.apply("digits", {"a": 1.0, "b": 2.0}, **ONE, rollout={"strategy": "OnDelete"})
    wait_for(lambda: reason(space, "digits", "Progressing") == "UpgradeBlocked", "it waits for somebody")
    move()
    assert revisions(space, "digits") == {revision} == {served(space, "digits")}
    wait_for(lambda: reason(space, "digits", "Progressing") == "UpgradeBlocked", "it waits again")
    (pod,) = uids(space, "digits")
    assert pod in space.condition("digits", "Progressing")[2]

    space.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}/pods/{pod}")
    wait_for(lambda: revisions(space, "digits") not in ({revision}, set()), "the change")
    settle(space, "digits")


def test_what_never_served_has_nothing_to_go_back_to_and_is_tried_on(space: Space, operator: Operator) -> None:
    space.apply("digits", **ONE, rollout=BRIEF, placement=WRONG)
    wait_for(lambda: reason(space, "digits", "Progressing") == "ProgressDeadlineExceeded", "time is over", 60)

    assert space.condition("digits", "Degraded")[:2] == ("True", "ImagePullBackOff")
    (pod,) = uids(space, "digits")
    operator.idle()
    assert list(uids(space, "digits")) == [pod], "the kubelet tries on"
    assert not any("ensembles.dev/failure" in e["metadata"].get("annotations", {}) for e in history(space, "digits"))
    space.apply("digits", **ONE, rollout=BRIEF)
    settle(space, "digits")


def test_copies_spread_over_nodes_and_have_a_budget(space: Space, operator: Operator) -> None:
    space.apply("digits", **ONE)
    settle(space, "digits")
    space.plane.kubectl("scale", "ie/digits", "--replicas=2", namespace=space.namespace)
    wait_for(lambda: space.status("digits").get("readyReplicas") == 2, "two copies")

    assert {pod["spec"]["nodeName"] for pod in space.pods("digits")} == {"roll-a", "roll-b"}
    (budget,) = space.items("poddisruptionbudgets", "digits", "/apis/policy/v1")
    assert budget["spec"]["minAvailable"] == 1
    scale = space.plane.admin.get(
        f"/apis/ensembles.dev/v1alpha1/namespaces/{space.namespace}/inferenceensembles/digits/scale"
    )
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    selected = space.plane.admin.items(
        f"/api/v1/namespaces/{space.namespace}/pods", labelSelector=scale["status"]["selector"]
    )
    assert {pod["metadata"]["name"] for pod in selected} == uids(space, "digits").keys()
