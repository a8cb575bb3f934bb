import pytest

from ensemble_operator.controller.records import record_of
from ensemble_operator.controller.resources import PODS

FAILED = {"exitCode": 66, "reason": "Error", "message": "starts\nHTTP 404\n", "finishedAt": "2026-01-01T00:00:00Z"}
TOLD = "container fetch-0 ended with 66: HTTP 404"
OUT_OF_MEMORY = {"exitCode": 137, "reason": "OOMKilled", "message": "all is well"}
BACK_OFF = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}


def trouble(container, kind="initContainerStatuses"):
    container = {"name": "fetch-0", "ready": False, "started": False} | container
    body = {
        "metadata": {
            "uid": "u",
            "name": "p",
            "namespace": "n",
            "creationTimestamp": "t",
            "labels": {"app.kubernetes.io/managed-by": "ensemble-operator"},
        },
        "spec": {"nodeName": "node"},
        "status": {"phase": "Pending", kind: [container]},
    }
    return record_of(PODS, body).own.trouble


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"state": {"terminated": FAILED}}, f"Error: {TOLD}"),
        (
            {"state": {"running": {}}, "lastState": {"terminated": FAILED}},
            f"Error: {TOLD}",
        ),
        (
            {"state": {"waiting": BACK_OFF}, "lastState": {"terminated": FAILED}},
            f"CrashLoopBackOff: {TOLD}",
        ),
        (
            {"state": {"terminated": OUT_OF_MEMORY}},
            "OOMKilled: container fetch-0 ended with 137",
        ),
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}}, "ErrImagePull: no such host"),
        ({"state": {"waiting": {"reason": "PodInitializing"}}}, None),
        ({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "ready": True}, None),
    ],
)
def test_what_keeps_a_pod_is_told_in_the_words_of_what_failed(container, expected):
    assert trouble(container) == expected


def test_a_container_that_has_started_again_is_in_no_trouble():
    again = {"state": {"running": {}}, "lastState": {"terminated": FAILED}, "started": True}
    assert trouble(again, "containerStatuses") is None
