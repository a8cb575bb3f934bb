"""What an ensemble leaves in the cluster through its life, with the real operator on a real API server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space, ensemble
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)
NODES = (gpu_node("life-a", count=4), gpu_node("life-b", count=4))


def config(space: Space, name: str) -> dict:
    (found,) = space.items("configmaps", name)
    return json.loads(found["data"]["config.json"])


def test_apply_makes_exactly_the_right_objects(space: Space) -> None:
    space.apply("digits")
    space.wait("digits")

    made = space.made("digits")
    assert len(made["pods"]) == 1 and len(made["configmaps"]) == 1
    assert made["services"] == ["digits"] and made["poddisruptionbudgets"] == []
    (pod,) = space.pods("digits")
    owner = space.ensemble("digits")["metadata"]
    assert [o["uid"] for o in pod["metadata"]["ownerReferences"]] == [owner["uid"]]
    assert "finalizers" not in owner and "annotations" not in owner
    assert {m["name"] for m in config(space, "digits")["members"]} == {"a", "b"}
    status = space.status("digits")
    assert status["members"] == "2/2" and status["readyReplicas"] == 1
    assert status["plan"] == pod["metadata"]["labels"]["ensembles.dev/plan"]
    assert status["endpoints"] == [f"http://digits.{space.namespace}.svc:8000"]


def test_a_service_of_somebody_else_is_left_alone(space: Space) -> None:
    meta = {"name": "taken", "namespace": space.namespace}
    spec = {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
    space.plane.kubectl("apply", "-f", "-", manifests=[theirs], namespace=space.namespace)
    space.apply("taken")
    wait_for(lambda: "not this ensemble's" in json.dumps(space.status("taken")), "the refusal in the status", 60)
    found = json.loads(space.plane.kubectl("get", "service", "taken", "-o", "json", namespace=space.namespace))
    assert found["spec"]["selector"] == {"app": "theirs"} and "ownerReferences" not in found["metadata"]
    assert not space.pods("taken")

    space.plane.kubectl("delete", "service", "taken", namespace=space.namespace)
    space.wait("taken")
    assert space.made("taken")["services"] == ["taken"]


def weights(space: Space, name: str) -> list[list[float]]:
    """Of the members, in each of the configurations that are there."""
    found = [json.loads(item["data"]["config.json"]) for item in space.items("configmaps", name)]
    return [[member.get("weight", 1.0) for member in written["members"]] for written in found]


def test_a_change_may_come_with_fewer_copies(space: Space) -> None:
    space.apply("shrinks", {"a": 1.0, "b": 1.0}, replicas=2)
    space.wait("shrinks")
    space.apply("shrinks", {"a": 1.0, "b": 2.0}, replicas=1)
    wait_for(lambda: weights(space, "shrinks") == [[1.0, 2.0]], "the new revision alone", 60)
    assert len(space.pods("shrinks")) == 1


def names(pods: list) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def settled(space: Space, operator: Operator, name: str, copies: int = 1) -> set[str]:
    """Wait until an ensemble serves as wanted, with nothing left over; the names of its pods."""
    space.wait(name)
    space.wait(name, "Progressing", "False")
    operator.idle()
    made = space.made(name)
    assert len(made["pods"]) == copies and len(made["configmaps"]) <= copies
    return set(made["pods"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"members": {"a": 2.0, "b": 1.0}}, id="weight"),
        pytest.param({"members": {"a": 1.0, "b": 1.0, "c": 1.0}}, id="member"),
        pytest.param({"combination": {"rule": "Mean"}}, id="rule"),
    ],
)
def test_an_edit_that_pods_notice_replaces_them_and_leaves_nothing_over(
    space: Space, operator: Operator, change: dict
) -> None:
    space.apply("digits")
    before = settled(space, operator, "digits")
    address = space.items("services", "digits")[0]["spec"]["clusterIP"]

    space.apply("digits", **change)
    after = settled(space, operator, "digits")

    assert not before & after
    (service,) = space.items("services", "digits")
    (pod,) = space.pods("digits")
    assert service["spec"]["clusterIP"] == address
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    written = config(space, "digits")
    assert {m["name"]: m.get("weight", 1.0) for m in written["members"]} == change.get("members", {"a": 1.0, "b": 1.0})


def test_fewer_devices_are_planned_anew_and_an_edit_that_no_pod_notices_changes_none(
    space: Space, operator: Operator
) -> None:
    space.apply("digits", devices={"kinds": ["GPU"], "max": 2})
    before = settled(space, operator, "digits")
    assert space.status("digits")["devices"] == 2

    space.apply("digits", devices={"kinds": ["GPU"], "max": 2}, priority=5)
    assert settled(space, operator, "digits") == before

    space.apply("digits", devices={"kinds": ["GPU"], "max": 1}, priority=5)
    after = settled(space, operator, "digits")
    assert not before & after and space.status("digits")["devices"] == 1


def test_deleted_it_leaves_nothing(space: Space, operator: Operator) -> None:
    space.apply("digits")
    settled(space, operator, "digits")

    space.delete("digits")

    wait_for(lambda: not any(space.made("digits").values()), "nothing is left")
    operator.idle()
    assert not any(space.made("digits").values())


def test_a_namespace_ends_with_all_that_is_in_it(kwok: Kwok, operator: Operator) -> None:
    """No finalizer of ours holds it up, also while nobody runs who could take one off."""
    space = Space(kwok.plane, kwok.plane.namespace())
    space.profiles("a", "b")
    space.apply("digits")
    space.apply("copies", replicas=2, devices={"kinds": ["GPU"], "max": 1})
    space.wait("digits")
    with kwok.plane.held(operator.program):
        kwok.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}")
        wait_for(lambda: not kwok.plane.admin.exists(f"/api/v1/namespaces/{space.namespace}"), "the namespace's end")
    operator.idle()


def test_plan_only_creates_nothing_and_shows_the_plan(space: Space, operator: Operator) -> None:
    space.apply("digits", mode="PlanOnly")
    space.wait("digits", "Planned")
    operator.idle()

    assert not any(space.made("digits").values())
    status = space.status("digits")
    assert {row["type"] for row in status["matrix"]} == {"NVIDIA-A100-SXM4-40GB"}
    assert {cell["member"] for row in status["matrix"] for cell in row["cells"]} == {"a", "b"} and status["rate"] > 0


def test_suspended_it_frees_its_devices_and_comes_back_under_the_same_address(space: Space, operator: Operator) -> None:
    space.apply("digits")
    settled(space, operator, "digits")
    address = space.items("services", "digits")[0]["spec"]["clusterIP"]

    space.apply("digits", suspend=True)
    space.wait("digits", "Suspended")
    wait_for(lambda: not space.items("pods", "digits"), "no pod")
    operator.idle()
    assert space.made("digits") == {"pods": [], "configmaps": [], "services": ["digits"], "poddisruptionbudgets": []}
    assert space.condition("digits", "Ready")[:2] == ("False", "Suspended")

    space.apply("digits", suspend=False)
    settled(space, operator, "digits")
    assert space.items("services", "digits")[0]["spec"]["clusterIP"] == address


def test_scaled_it_gets_whole_copies_and_the_others_stay(space: Space, operator: Operator) -> None:
    space.apply("digits", devices={"kinds": ["GPU"], "max": 1})
    first = settled(space, operator, "digits")

    space.plane.kubectl("scale", "ie/digits", "--replicas=3", namespace=space.namespace)
    space.wait("digits")
    wait_for(lambda: space.status("digits").get("readyReplicas") == 3, "three copies")
    operator.idle()
    assert first < names(space.pods("digits")) and len(space.pods("digits")) == 3
    assert space.made("digits")["poddisruptionbudgets"] == ["digits"]

    space.plane.kubectl("scale", "ie/digits", "--replicas=1", namespace=space.namespace)
    wait_for(lambda: names(space.items("pods", "digits")) == first, "the first copy alone")
    operator.idle()
    assert space.made("digits")["poddisruptionbudgets"] == []


def test_an_invalid_spec_is_refused_by_name_and_what_runs_goes_on(space: Space, operator: Operator) -> None:
    space.apply("digits")
    before = settled(space, operator, "digits")

    # Newer API servers or older CRDs may let through what the operator refuses: here the rules are taken off.
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceensembles.ensembles.dev"
    with without_rules(space, crd):
        space.apply("digits", devices={"kinds": ["CPU"]})
        space.wait("digits", "Accepted", "False")
        operator.idle()

        status, reason, message = space.condition("digits", "Accepted")
        assert (status, reason) == ("False", "Invalid") and "spec.members[0].deviceKinds" in message
        assert names(space.pods("digits")) == before
        told = [e for e in space.events() if e["reason"] == "Invalid"]
        assert len(told) == 1 and told[0]["type"] == "Warning" and told[0]["involvedObject"]["name"] == "digits"

        space.apply("digits")
        space.wait("digits", "Accepted", "True")
        assert settled(space, operator, "digits") == before


@contextmanager
def without_rules(space: Space, path: str) -> Iterator[None]:
    """The API server checks no rules of the CRD meanwhile, only types."""
    whole = space.plane.admin.get(path)
    version = whole["spec"]["versions"][0]
    bare = {**version, "schema": {"openAPIV3Schema": stripped(version["schema"]["openAPIV3Schema"])}}
    space.plane.admin.merge(path, {"spec": {"versions": [bare]}})
    time.sleep(2)  # it takes the API server a moment, and nothing tells when
    try:
        yield
    finally:
        space.plane.admin.merge(path, {"spec": {"versions": [version]}})
        time.sleep(2)


def stripped(schema: Any) -> Any:
    if isinstance(schema, list):
        return [stripped(part) for part in schema]
    if isinstance(schema, dict):
        return {key: stripped(part) for key, part in schema.items() if key != "x-kubernetes-validations"}
    return schema


def test_what_does_not_fit_says_why(space: Space, operator: Operator) -> None:
    space.profiles("a", "b", memory_mib=39 * 1024)
    space.apply("large", {"a": 1.0, "b": 1.0}, replicas=5)
    space.wait("large", "Planned", "False")

    _, reason, message = space.condition("large", "Planned")
    assert reason == "DoesNotFit" and re.search(r"needs 2 devices of 39\S* GiB, the best node has", message)


def test_the_core_beside_a_gpu_is_given_to_nobody_else(space: Space, operator: Operator, kwok: Kwok) -> None:
    """On three cores, one is for a member and one for what drives the GPU: of two copies on a core one waits."""
    names = kwok.add(gpu_node("life-small", "Tesla-T4", 1, 16_384, cores=3, memory_gib=32, labels={"at": "small"}))
    here = {"placement": {"nodeSelector": {"at": "small"}}}
    try:
        space.profiles("a", device_type="Tesla-T4")
        space.profiles("b", device_type="cpu-1")
        both = ensemble("both", space.namespace, devices={"kinds": ["GPU", "CPU"]}, **here)
        both["spec"]["members"][1]["deviceKinds"] = ["CPU"]
        cores = ensemble("cores", space.namespace, {"b": 1.0}, devices={"kinds": ["CPU"], "max": 1}, replicas=2, **here)
        cores["spec"]["members"][0]["deviceKinds"] = ["CPU"]
        space.plane.admin.apply(both)
        space.wait("both")
        space.plane.admin.apply(cores)
        space.wait("cores")
        operator.idle()
        assert space.condition("cores", "Planned")[:2] == ("False", "DoesNotFit")
        assert all(pod["spec"].get("nodeName") for pod in space.pods())
        space.clear()
    finally:
        kwok.remove(names)


def test_a_higher_priority_preempts_only_with_leave(space: Space, operator: Operator) -> None:
    whole = {"devices": {"kinds": ["GPU"], "max": 4}, "replicas": 2}
    space.profiles("a", "b", memory_mib=20 * 1024)
    space.apply("low", **whole)
    space.wait("low")
    space.apply("mid", priority=1, devices={"kinds": ["GPU"], "max": 4})
    space.wait("mid", "Planned", "False")
    operator.idle()
    assert space.status("low")["readyReplicas"] == 2

    space.apply("high", priority=2, preemption="LowerPriority", devices={"kinds": ["GPU"], "max": 4})
    space.wait("high")
    wait_for(lambda: space.status("low")["readyReplicas"] == 1, "a copy has given way")
    operator.idle()
    assert space.condition("low", "Planned")[0] == "False"
    (told,) = [e for e in space.events() if e["reason"] == "Preempted"]
    assert told["involvedObject"]["name"] == "low" and f"{space.namespace}/high" in told["message"]

    operator.restart()
    operator.idle()
    assert space.condition("low", "Planned")[1] == "Preempted", "a new operator knows it as well"
    assert space.status("low")["preemptedBy"] == f"{space.namespace}/high"
    for name in ("mid", "high"):
        space.delete(name)
    wait_for(lambda: space.status("low")["readyReplicas"] == 2, "its devices are its own again")
    wait_for(lambda: "preemptedBy" not in space.status("low"), "nobody has taken them")


def test_what_somebody_takes_away_or_edits_is_put_right(space: Space, operator: Operator) -> None:
    space.apply("digits")
    (pod,) = settled(space, operator, "digits")
    core = f"/api/v1/namespaces/{space.namespace}"
    (old,) = space.pods("digits")

    space.plane.admin.delete(f"{core}/pods/{pod}")
    space.plane.admin.delete(f"{core}/services/digits")
    for written in space.made("digits")["configmaps"]:
        space.plane.admin.delete(f"{core}/configmaps/{written}")
    wait_for(lambda: names(space.pods("digits")) == {pod}, "the pod again")
    settled(space, operator, "digits")
    (new,) = space.pods("digits")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert space.made("digits")["services"] == ["digits"] and len(space.made("digits")["configmaps"]) == 1

    space.plane.admin.merge(f"{core}/services/digits", {"spec": {"selector": {"ensembles.dev/role": "nobody"}}})
    wait_for(
        lambda: space.items("services", "digits")[0]["spec"]["selector"]["ensembles.dev/role"] == "head",
        "the selector as it was",
    )


def test_when_nothing_changes_nothing_is_written(space: Space, operator: Operator) -> None:
    space.apply("digits")
    settled(space, operator, "digits")
    mark, before = space.plane.mark(), space.ensemble("digits")["metadata"]["resourceVersion"]
    node = "/api/v1/nodes/life-a"
    space.plane.admin.merge(node, {"metadata": {"annotations": {"heartbeat": "1"}}})
    operator.idle(3.0)

    assert space.ensemble("digits")["metadata"]["resourceVersion"] == before
    writes = [r for r in space.plane.requests("admin", mark) if r.verb not in ("get", "list", "watch")]
    # The leases are the nodes' own, which KWOK renews.
    assert [(w.verb, w.resource) for w in writes if w.resource != "leases"] == [("patch", "nodes")]


def test_its_probe_and_its_figures(space: Space, operator: Operator) -> None:
    space.apply("digits")
    settled(space, operator, "digits")

    assert operator.healthy()
    figures = operator.metrics()
    assert figures['ensembles_operator_ensembles{condition="Ready",status="True"}'] >= 1
    kinds = {
        use: figures[f'ensembles_operator_devices{{state="{use}",type="NVIDIA-A100-SXM4-40GB"}}']
        for use in ("used", "free")
    }
    assert kinds["used"] == space.status("digits")["devices"] and sum(kinds.values()) == 8
    own = [line for line in operator.log() if line["logger"].startswith("ensemble_operator")]
    assert not any(line["level"] == "ERROR" for line in own)


def test_a_pod_that_cannot_pull_its_image_degrades_the_ensemble(space: Space, operator: Operator) -> None:
    space.apply("pull-fails")
    space.wait("pull-fails", "Degraded")

    _, reason, message = space.condition("pull-fails", "Degraded")
    assert reason in ("ErrImagePull", "ImagePullBackOff") and message.startswith("pod pull-fails-")
    assert space.status("pull-fails")["reason"] == reason


def test_the_last_failure_is_told(space: Space, operator: Operator, kwok: Kwok) -> None:
    space.apply("digits")
    settled(space, operator, "digits")
    (pod,) = space.pods("digits")
    kwok.crash(pod, 70, "the arena does not fit")

    wait_for(lambda: "lastFailure" in space.status("digits"), "the failure")
    told = space.status("digits")["lastFailure"]
    assert told == {
        "pod": pod["metadata"]["name"],
        "container": "runtime",
        "exitCode": 70,
        "message": "the arena does not fit",
    }


def test_a_pod_whose_model_is_gone_from_the_cache_is_made_anew_and_no_other_that_fails(
    space: Space, operator: Operator, kwok: Kwok
) -> None:
    """Only init containers have the secret that a model is fetched with."""
    space.apply("digits")
    settled(space, operator, "digits")
    (pod,) = space.pods("digits")
    kwok.crash(pod, 66, "no such file")
    wait_for(lambda: "lastFailure" in space.status("digits"), "the failure")
    operator.idle()
    assert space.pods("digits")[0]["metadata"]["uid"] == pod["metadata"]["uid"]

    kwok.crash(pod, 75, "evicted from the cache after it was fetched")
    wait_for(lambda: {p["metadata"]["uid"] for p in space.pods("digits")} - {pod["metadata"]["uid"]}, "another pod")
    assert settled(space, operator, "digits") == {pod["metadata"]["name"]}
