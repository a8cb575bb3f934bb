"""Which profiling pods are given up; the rest of profiling is told by tests/cluster/test_operator_measuring.py."""

import pytest

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.profiling import Profiling
from ensemble_operator.controller.resources import NODES, PODS
from ensemble_operator.manifests.settings import PodSettings

IMAGES = PodSettings("runtime:onnx", "runtime:full")


def node(name, ready="True", cordoned=False):
    conditions = [{"type": "Ready", "status": ready}]
    metadata = {"name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {"unschedulable": cordoned}, "status": {"conditions": conditions}}


def pod(bound=True, phase="Running", deleting=False):
    labels = {"app.kubernetes.io/managed-by": "ensemble-operator", "app.kubernetes.io/component": "profiler"}
    metadata = {"name": "profile-x", "namespace": "n", "uid": "x", "resourceVersion": "1", "labels": labels}
    metadata |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    held = '[{"name":"gpu0","node":"home","kind":"GPU","type":"t","memoryBytes":1,"cores":[],"uuid":null,"source":""}]'
    metadata |= {"annotations": {"ensembles.dev/devices": held}}
    metadata |= {"deletionTimestamp": "2026-01-01T00:01:00Z"} if deleting else {}
    return {"metadata": metadata, "spec": {"nodeName": "home"} if bound else {}, "status": {"phase": phase}}


def given_up(one, *nodes):
    """Of the pods that are deleted, which are so without waiting for their node."""
    cache = Cache()
    for each in nodes:
        cache.observe(NODES, each)
    cache.observe(PODS, one)
    return [removed.lost for removed in Profiling().actions([], cache, IMAGES, 0.0).delete]


@pytest.mark.parametrize(
    ("one", "nodes"),
    [
        pytest.param(pod(), [node("home", ready="Unknown")], id="its node is silent"),
        pytest.param(pod(deleting=True), [node("home", ready="Unknown")], id="its node cannot confirm its end"),
        pytest.param(pod(), [node("other")], id="its node is no more"),
        pytest.param(pod(bound=False), [node("home", cordoned=True)], id="its node lets nobody in"),
    ],
)
def test_a_pod_that_will_not_tell_is_given_up(one, nodes):
    assert given_up(one, *nodes) == [True]


def test_others_are_given_the_time_to_end():
    assert given_up(pod(), node("home")) == [False]
    assert given_up(pod(), node("home", cordoned=True)) == [False], "it runs there"
    assert given_up(pod()) == [False], "who may not read nodes does not know"
    assert given_up(pod(deleting=True), node("home")) == []
