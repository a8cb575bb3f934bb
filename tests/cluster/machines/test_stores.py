"""Models from an S3-compatible store by a Secret, and a cache that the pods of a node share: the examples, applied."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from beds.binaries import provide
from beds.chart import Chart
from beds.cluster import Cluster
from beds.images import REPOSITORY
from beds.machines import OUTSIDE_ADDRESS, Machines
from beds.models import COLUMNS, LARGE, Classifier
from beds.processes import wait_for
from beds.served import Served
from beds.store import KEY, SECRET, Store

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
EXAMPLES = REPOSITORY / "examples" / "kubernetes"
NODE = "node-3"
BOUND_MIB = 1
FIRST, SECOND, THIRD = LARGE
ROWS = np.linspace(-2, 2, 5 * COLUMNS, dtype=np.float32).reshape(5, COLUMNS)


class Caching:
    """A namespace whose operator has a cache on the node, and a store outside of the cluster."""

    def __init__(self, cluster: Cluster, namespace: str, store: Store, folder: Path) -> None:
        self.cluster, self.namespace, self.store, self.folder = cluster, namespace, store, folder

    def secret(self, document: dict[str, Any], secret: str) -> None:
        """The example's Secret, with what a user changes."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": self.store.url}
        assert document["stringData"].keys() == keys.keys()
        changed = document | {"stringData": keys}
        self.cluster.plane.kubectl("apply", "-f", "-", manifests=[changed], namespace=self.namespace)

    def cached(self) -> set[str]:
        """Digests of the files in the cache."""
        found = (file for file in self.folder.glob("sha256/??/*") if not file.suffix)
        return {file.parent.name + file.name for file in found}


@pytest.fixture(scope="module")
def caching(machines: Machines, cluster: Cluster) -> Iterator[Caching]:
    """While the cluster's own operator is away."""
    plane, node = machines.plane, machines.nodes[NODE]
    namespace = plane.namespace(enforce="restricted")
    text = (EXAMPLES / "node-cache.yaml").read_text().replace("default", namespace)  # each namespace has its own
    volume, claim = yaml.safe_load_all(text)
    path = volume["spec"]["hostPath"]["path"]
    subprocess.run(node.within("install", "-d", "-o", "65532", "-g", "65532", "-m", "0770", path), check=True)
    plane.kubectl("apply", "-f", "-", manifests=[volume, claim], namespace=namespace)
    values = {"scope": "Namespace", "modelCache.claimName": claim["metadata"]["name"]}
    stated = [{"name": NODE, "cores": 2, "memoryMib": 16_384}]
    own = Chart(provide(["helm"], print)["helm"], plane, namespace, "caching", values)
    objects = {f"{name}.onnx": one.content for name, one in (("first", FIRST), ("second", SECOND))}
    with cluster.chart.paused(), Store(objects, OUTSIDE_ADDRESS) as store:
        bound = ("--set", f"crds.install=false,modelCache.maxMib={BOUND_MIB}")
        own.install(flags=(*bound, "--set-json", f"inventory.static={json.dumps(stated)}"))
        yield Caching(cluster, namespace, store, node.private(Path(path)))
        own.helm("uninstall", own.release)
    plane.admin.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
    plane.admin.delete(f"/api/v1/namespaces/{namespace}")


def members(spec: dict[str, Any], *models: Classifier) -> list[dict[str, Any]]:
    """The example's members with the digests of these files."""
    pairs = zip(spec["members"], models, strict=True)
    return [one | {"model": one["model"] | {"sha256": model.digest}} for one, model in pairs]


def test_the_pods_of_a_node_fetch_a_model_once_and_keep_what_fits(caching: Caching) -> None:
    """In use are two files of 1.2 MiB together, where one is to be kept: they stay until nobody uses them."""
    secret, example = yaml.safe_load_all((EXAMPLES / "s3.yaml").read_text())
    spec, store = example["spec"], caching.store
    devices = spec["devices"] | {"max": 1}
    name = example["metadata"]["name"]
    served = Served(caching.cluster, caching.namespace, name, devices=devices)
    served.profiles()

    caching.secret(secret, "not the secret")
    served.apply(members=members(spec, FIRST, SECOND))

    def said() -> str:
        return served.space.condition(name, "Degraded")[2]

    told = "container fetch-0 ended with 66: ensemble-runtime: model s3://models/first.onnx: the store refuses it; "
    wait_for(lambda: told + "check the credentials" in said(), "the wrong secret told", 30)
    caching.secret(secret, SECRET)
    (pod,) = served.pods()
    served.cluster.plane.kubectl(
        "delete", "pod", pod["metadata"]["name"], namespace=caching.namespace
    )  # in no back-off
    served.wait()
    assert served.right(ROWS, served.predict(ROWS))
    assert caching.cached() == {FIRST.digest, SECOND.digest}

    asked = store.asked.copy()
    served.apply(replicas=2)
    served.has(2)
    assert {pod["spec"]["nodeName"] for pod in served.pods()} == {NODE}
    assert store.asked == asked, "the second pod asks the store for nothing"
    assert caching.cached() == {FIRST.digest, SECOND.digest}
    served.delete()

    store.objects["first.onnx"] = THIRD.content
    other = Served(caching.cluster, caching.namespace, "other", devices=devices)
    other.apply(members=members(spec, THIRD, SECOND)[:1])
    other.wait()
    assert other.right(ROWS, other.predict(ROWS))
    assert caching.cached() == {THIRD.digest}
    assert store.asked["first.onnx"] > asked["first.onnx"]
    other.delete()


def test_a_model_that_is_evicted_while_its_container_is_down_comes_back_by_itself(
    caching: Caching, machines: Machines
) -> None:
    secret, example = yaml.safe_load_all((EXAMPLES / "s3.yaml").read_text())
    caching.secret(secret, SECRET)
    caching.store.objects["first.onnx"] = FIRST.content
    devices = example["spec"]["devices"] | {"max": 1}
    served = Served(caching.cluster, caching.namespace, "evicted", devices=devices)
    served.profiles()
    served.apply(members=members(example["spec"], FIRST, SECOND)[:1])
    served.wait()
    (pod,) = served.pods()

    (caching.folder / "sha256" / FIRST.digest[:2] / FIRST.digest[2:]).unlink()
    os.kill(machines.nodes[NODE].processes(pod)[1], signal.SIGKILL)

    wait_for(lambda: {p["metadata"]["uid"] for p in served.pods()} - {pod["metadata"]["uid"]}, "another pod", 60)
    served.wait()
    assert served.right(ROWS, served.predict(ROWS))
    assert served.space.status("evicted")["lastFailure"]["exitCode"] == 75
    served.delete()
