"""The configurations that pods are given, served by real processes: slots, models in place, shards and their token."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sample_plans import SETTINGS, UID, cpu, make_ensemble, make_plan_on

from ensemble_operator.manifests.deployment import copy_objects
from ensemble_operator.manifests.token import TOKEN_FILE

Serve = Callable[[dict[str, Any]], Any]
Weights = dict[Path, NDArray[np.float32]]
NAMES = ("one", "two", "three")


def pod_configs(weights: Weights, nodes: tuple[str, str, str]) -> list[dict[str, Any]]:
    """What the pods of a copy are given, the head's first; each member is on its node."""
    paths = [*weights, next(iter(weights))]
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(NAMES, paths, strict=True)}
    ensemble = make_ensemble(
        "ensemble",
        models={name: {"uri": path.as_uri()} for name, path in zip(NAMES, paths, strict=True)},
        outputs=[{"name": "y", "datatype": "FP32", "shape": [3]}],
        combination={"rule": "WeightedMean", "predictions": "Values"},
    )
    devices = [cpu("cpu0", node, cores=1) for node in sorted(set(nodes))]
    cells = [(node, "cpu0", name, 8) for node, name in zip(nodes, NAMES, strict=True)]
    objects = copy_objects(ensemble, UID, 0, make_plan_on(devices, cells), digests, SETTINGS)
    return [json.loads(o["data"]["config.json"]) for o in objects if o["kind"] == "ConfigMap"]


def on_this_machine(configs: list[dict[str, Any]], token: Path) -> list[dict[str, Any]]:
    """The same with ports and a token file of this machine in place of the cluster's."""
    ports = [_free_port() for _ in configs]
    urls = [remote["url"] for remote in configs[0].get("remotes", ())]
    found = []
    for config, port in zip(configs, ports, strict=True):
        text = json.dumps(config | {"listen": {"port": port}}).replace(TOKEN_FILE, str(token))
        for url, other in zip(urls, ports[1:], strict=True):
            text = text.replace(url, f"http://127.0.0.1:{other}")
        found.append(json.loads(text))
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def expected(weights: Weights, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = weights.values()
    mean: NDArray[np.float32] = (2 * rows @ first + rows @ second) / 3
    return mean


def test_a_pod_serves_its_plan(serve: Serve, weights: Weights, tmp_path: Path) -> None:
    (config,) = on_this_machine(pod_configs(weights, ("a", "a", "a")), tmp_path / "token")
    rows = np.random.default_rng(1).random((5, 4), "f4")
    np.testing.assert_allclose(serve(config).infer(rows), expected(weights, rows), rtol=1e-5)


def test_a_copy_on_two_nodes_answers_as_one(serve: Serve, weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-that-the-shards-share")
    head, shard = on_this_machine(pod_configs(weights, ("a", "b", "b")), tmp_path / "token")
    assert [member["name"] for member in shard["members"]] == ["one"]
    serve(shard).address()
    rows = np.random.default_rng(2).random((20, 4), "f4")
    np.testing.assert_allclose(serve(head).infer(rows), expected(weights, rows), rtol=1e-5)
