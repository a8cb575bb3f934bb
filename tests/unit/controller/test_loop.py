"""The loop where the API server refuses: a cluster that is a dictionary, and the real decisions."""

import asyncio
import time
from collections import Counter

import pytest

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.decide import Decider
from ensemble_operator.controller.kube import KubeError, Listing
from ensemble_operator.controller.loop import Loop
from ensemble_operator.controller.metrics import Metrics
from ensemble_operator.controller.resources import ENSEMBLES, NODES, PODS, PROFILES
from ensemble_operator.controller.settings import Settings
from ensemble_runtime.report import pack

A100 = "NVIDIA-A100-SXM4-40GB"
DIGEST = "a" * 64
SOURCES = dict.fromkeys((ENSEMBLES, NODES, PODS, PROFILES), "")


class Cluster:
    """Keeps what is applied; what `refuses` names (verb and kind) it refuses with its status."""

    def __init__(self, *bodies):
        self.version, self.refuses, self.asked, self.there = 0, {}, Counter(), {}
        for body in bodies:
            self.keep(body)

    def keep(self, body):
        self.version += 1
        meta = body["metadata"] | {"resourceVersion": str(self.version)}
        meta = {"uid": meta["name"], "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"} | meta
        key = body["kind"], meta["name"]
        self.there[key] = {"spec": {}} | self.there.get(key, {}) | body | {"metadata": meta}
        return self.there[key]

    def ask(self, verb, kind):
        self.asked[verb, kind] += 1
        if (verb, kind) in self.refuses:
            raise KubeError(f"{verb} {kind}: refused", self.refuses[verb, kind])

    async def list(self, resource, **_):
        self.ask("list", resource.kind)
        return Listing(tuple(b for (kind, _), b in self.there.items() if kind == resource.kind), self.version)

    async def named(self, *_):
        return None

    async def apply(self, body):
        self.ask("apply", body["kind"])
        return self.keep(body)

    async def apply_status(self, body):
        self.ask("status", body["kind"])
        return self.keep(body)

    async def delete(self, resource, namespace, name, uid, **_):
        self.ask("delete", resource.kind)
        self.there.pop((resource.kind, name), None)


class Here:
    """Decides in this process."""

    def __init__(self):
        self.decider = Decider(600 * 2**20, {})

    async def decide(self, state, seconds):
        return self.decider(state, time.monotonic() + seconds)


def member(digest=DIGEST):
    model = {"uri": "https://m/a.onnx", "format": "ONNX", "sha256": digest}
    return {"name": "a", "model": model, "batchSizes": [1]}


def ensemble():
    tensor = {"datatype": "FP32", "shape": [4]}
    ports = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    spec = {"members": [member()], **ports, "devices": {"kinds": ["GPU"]}}
    return {"kind": "InferenceEnsemble", "metadata": {"name": "digits", "namespace": "n"}, "spec": spec}


def node():
    labels = {"nvidia.com/gpu.product": A100, "nvidia.com/gpu.memory": "40960", "nvidia.com/gpu.count": "1"}
    allocatable = {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": "1"}
    status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"kind": "Node", "metadata": {"name": "node", "labels": labels}, "status": status}


def profile():
    points = [{"batchSize": 1, "seconds": 0.01, "memoryMib": 1024}]
    spec = {"model": {"sha256": DIGEST}, "deviceType": A100, "points": points}
    meta = {"name": "a", "namespace": "n"}
    return {"apiVersion": "ensembles.dev/v1alpha1", "kind": "ModelProfile", "metadata": meta, "spec": spec}


async def started(cluster):
    """A loop that has listed everything."""
    settings = Settings(runtime_image_onnx="onnx", runtime_image_full="full")
    loop = Loop(settings, cluster, Cache(), Here(), Metrics(), SOURCES)
    await loop.list_all()
    return loop


def test_a_status_that_is_refused_is_tried_again_ever_more_rarely(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    async def play():
        cluster = Cluster(ensemble(), node(), profile())
        cluster.refuses["status", "InferenceEnsemble"] = 422
        loop = await started(cluster)
        for _ in range(200):
            await loop.cycle()
            clock[0] += 1.0
        return cluster.asked["status", "InferenceEnsemble"]

    assert 5 <= asyncio.run(play()) <= 10


@pytest.mark.parametrize("verb", ["apply", "delete"])
def test_what_was_measured_is_kept_until_it_is_written_whatever_is_refused(verb, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    refused = {"apply": ("apply", "ModelProfile"), "delete": ("delete", "Pod")}[verb]

    async def play():
        cluster = Cluster(ensemble(), node())
        loop = await started(cluster)
        await loop.cycle()
        ((_, name),) = (key for key in cluster.there if key[0] == "Pod")
        point = {"digest": DIGEST, "deviceType": A100, "precision": "FP32", "seconds": 0.01, "memoryBytes": 2**30}
        ended = {"exitCode": 0, "message": pack([point | {"batchSize": 1}]), "finishedAt": "2026-01-01T00:00:00Z"}
        container = {"name": "runtime", "state": {"terminated": ended}}
        status = {"phase": "Succeeded", "containerStatuses": [container]}
        cluster.keep(cluster.there["Pod", name] | {"status": status})
        cluster.refuses[refused] = 500
        await loop.list_all()
        for _ in range(20):
            await loop.cycle()  # which is not broken off
            clock[0] += 1.0
        assert ("Pod", name) in cluster.there and 1 < cluster.asked[refused] <= 6
        cluster.refuses.clear()
        for _ in range(60):
            await loop.cycle()
            clock[0] += 1.0
        assert [kind for kind, _ in cluster.there if kind == "ModelProfile"] and ("Pod", name) not in cluster.there
        (served,) = (body for (kind, _), body in cluster.there.items() if kind == "Pod")
        assert served["metadata"]["labels"]["app.kubernetes.io/component"] == "shard"

    asyncio.run(play())
