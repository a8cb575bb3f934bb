import json
from dataclasses import replace

import pytest

from ensemble_operator.api.status import EnsembleStatus
from ensemble_operator.controller.changes import Changes, There
from ensemble_operator.controller.decision import Decision, Missing, Supply
from ensemble_operator.controller.records import Ended, EnsembleRecord, OwnPod
from ensemble_operator.controller.rollout import Steps
from ensemble_operator.controller.status import Observed, View, notices, status
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.deployment import copy_objects
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

DIGEST = "a" * 64
GPU = Device("gpu0", "node", DeviceKind.GPU, "T4", 2**34, source="Labels")
SPEC = {
    "members": [{"name": "a", "model": {"uri": "https://m/a.onnx", "format": "ONNX", "sha256": DIGEST}}],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
}
RECORD = EnsembleRecord("u", "n", "digits", "t", 3, False, json.dumps(SPEC), "{}")
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def ensemble():
    from ensemble_operator.api.ensemble import InferenceEnsemble

    return InferenceEnsemble.model_validate(RECORD.manifest())


def plan():
    profile = Profile(DIGEST, "T4", "FP32", (Point(8, 0.01, 2**30),))
    problem = Problem((GPU,), (PlanMember("a", {"T4": profile}),))
    return Plan(problem, ((8,),), ((1.0,),), ((1.0,),), 812.34567, 812.4, 400.0, "gpu0", "a")


DECISION = Decision(digests={"a": DIGEST}, revision="r", plans={0: plan()}, supply=Supply(2, 1, ("Labels",)))


def pods(ready=True, trouble=None, ended=None):
    made = copy_objects(ensemble(), "u", 0, plan(), {"a": DIGEST}, PodSettings("onnx", "full"))
    meta = made[-1]["metadata"]
    labels = {**meta["labels"], "ensembles.dev/revision": "r"}
    own = OwnPod(
        "p", "t", "u", labels, meta["annotations"], "node", "10.0.0.1", "Running", ready, False, trouble, ended
    )
    from ensemble_operator.controller.changes import wanted_sets

    (name,) = wanted_sets(ensemble(), DECISION)[0].pods
    return {name: own}


def view(decision=DECISION, there=None, ready=1, **rest):
    there = There(pods() if there is None else there, {})
    return View(RECORD, ensemble(), decision, there, Changes(steps=Steps(serving="r", ready_copies=ready)), **rest)


def conditions(written):
    return {c["type"]: (c["status"], c["reason"]) for c in written["conditions"]}


def test_all_is_well():
    written = status(view(), {}, NOW)

    assert conditions(written) == {
        "Accepted": ("True", "Valid"),
        "Profiled": ("True", "Measured"),
        "Planned": ("True", "Planned"),
        "Progressing": ("False", "Complete"),
        "Ready": ("True", "Serving"),
        "Degraded": ("False", "AsPlanned"),
        "Suspended": ("False", "Serving"),
    }
    assert "reason" not in written and written["members"] == "1/1" and written["rate"] == 812.3
    (row,) = written["matrix"]
    assert row == {
        "node": "node",
        "device": "gpu0",
        "type": "T4",
        "source": "Labels",
        "cells": [{"member": "a", "batchSize": 8}],
    }
    EnsembleStatus.model_validate(written)


def test_the_real_device_behind_a_slot_and_the_observed_rate_are_shown():
    (name,) = pods()
    written = status(view(observed=Observed({(name, "gpu0"): "GPU-7"}, 512.0)), {}, NOW)

    assert written["matrix"][0]["uuid"] == "GPU-7" and written["observedRate"] == 512.0


def test_whole_rates_are_written_as_the_api_server_gives_them_back():
    """Go writes 1234.0 as 1234; statuses are compared as text."""
    fast = replace(DECISION, plans={0: replace(plan(), rate=1234.4)})
    written = json.dumps(status(view(fast, observed=Observed({}, 512.0)), {}, NOW))

    assert '"rate": 1234,' in written and '"observedRate": 512,' in written


def test_the_same_state_gives_the_same_status_and_times_stay_until_a_condition_turns():
    first = status(view(), {}, NOW)
    assert status(view(), first, LATER) == first

    turned = status(view(there=pods(ready=False), ready=0), first, LATER)
    times = {c["type"]: c["lastTransitionTime"] for c in turned["conditions"]}
    assert times["Ready"] == LATER and times["Accepted"] == NOW
    assert [n.reason for n in notices(first, turned)] == ["Starting", "NotReady"]
    assert notices(first, first) == []


def test_a_status_stays_within_what_the_crd_permits():
    many = dict.fromkeys(range(5000), plan())
    written = status(view(replace(DECISION, plans=many, waiting="no" * 5000)), {}, NOW)

    assert len(written["matrix"]) == 4096
    assert all(len(c["message"]) <= 4096 for c in written["conditions"])


@pytest.mark.parametrize(
    ("decision", "condition", "expected"),
    [
        (Decision(fault="spec.x: wrong", frozen=True), "Accepted", ("False", "Invalid")),
        (replace(DECISION, plans={}, waiting="needs 2 devices"), "Planned", ("False", "DoesNotFit")),
        (replace(DECISION, plans={}, waiting="no", preempted_by="n/o"), "Planned", ("False", "Preempted")),
        (replace(DECISION, plans={}, frozen=True, waiting="no"), "Planned", ("False", "UpgradeBlocked")),
        (Decision(frozen=True, waiting="no inventory"), "Planned", ("Unknown", "Waiting")),
        (Decision(suspended=True), "Suspended", ("True", "Suspended")),
        (
            replace(DECISION, plans={}, frozen=True, missing=(Missing((DIGEST, "T4", "FP32", None), "a", GPU),)),
            "Profiled",
            ("False", "Profiling"),
        ),
        (
            replace(DECISION, missing=(Missing((DIGEST, "T4", "FP32", None), "a", None),)),
            "Profiled",
            ("False", "NoDeviceToMeasureOn"),
        ),
        (
            replace(DECISION, plans={}, missing=(Missing((DIGEST, "T4", "FP32", None), "a", None, "404"),)),
            "Profiled",
            ("False", "ProfilingFailed"),
        ),
        (
            replace(
                DECISION,
                plans={},
                missing=(Missing((DIGEST, "T4", "FP32", None), "a", GPU, trouble="ErrImagePull: no"),),
            ),
            "Profiled",
            ("False", "ErrImagePull"),
        ),
    ],
)
def test_what_is_not_as_wished_is_the_reason(decision, condition, expected):
    written = status(view(decision, there={}, ready=0), {}, NOW)

    assert conditions(written)[condition] == expected
    assert written["reason"] == expected[1]
    EnsembleStatus.model_validate(written)


def test_a_pods_trouble_and_its_last_failure_are_told_and_the_failure_outlives_the_pod():
    failing = pods(ready=False, trouble="CrashLoopBackOff: back-off", ended=Ended("runtime", 70, "does not fit"))
    written = status(view(there=failing, ready=0), {}, NOW)

    (name,) = failing
    assert conditions(written)["Degraded"] == ("True", "CrashLoopBackOff")
    assert written["lastFailure"] == {"pod": name, "container": "runtime", "exitCode": 70, "message": "does not fit"}
    assert status(view(), written, LATER)["lastFailure"] == written["lastFailure"]


def test_the_pod_that_cannot_measure_is_named_with_what_keeps_it():
    missing = (Missing((DIGEST, "T4", "FP32", None), "a", GPU, trouble="ErrImagePull: no such host"),)
    written = status(view(replace(DECISION, plans={}, missing=missing), there={}, ready=0), {}, NOW)

    (profiled,) = (c for c in written["conditions"] if c["type"] == "Profiled")
    assert profiled["message"].startswith("pod profile-")
    assert profiled["message"].endswith(", which measures a on T4: ErrImagePull: no such host")


def test_what_is_frozen_keeps_what_was_said_of_it():
    before = status(view(), {}, NOW)
    after = status(view(Decision(fault="wrong", frozen=True)), before, LATER)

    assert {k: after[k] for k in ("plan", "rate", "matrix", "members")} == {
        k: before[k] for k in ("plan", "rate", "matrix", "members")
    }
