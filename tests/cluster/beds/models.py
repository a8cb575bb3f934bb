"""Small ONNX models for ensembles of the tests, and a plain web server that hands them out inside the enclosure."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from beds.client import Manifest
from beds.processes import Program

COLUMNS, CLASSES = 8, 4
BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Classifier:
    """A linear map and a softmax, which numpy can compute as well.

    Attributes:
        name: Of the file.
        weights: Of the linear map.
        padding: Bytes that the file is larger than it had to be.
    """

    name: str
    weights: NDArray[np.float32]
    padding: int = 0

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model puts out for these rows."""
        scores = rows @ self.weights
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    @cached_property
    def content(self) -> bytes:
        """The ONNX file."""
        nodes = [
            helper.make_node("MatMul", ["x", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["y"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", COLUMNS])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", CLASSES])],
            [numpy_helper.from_array(self.weights, "weights")],
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, doc_string="." * self.padding)
        content: bytes = model.SerializeToString()
        return content

    @property
    def digest(self) -> str:
        """Of the file, in hexadecimal SHA-256."""
        return hashlib.sha256(self.content).hexdigest()


def _classifiers(kind: str, count: int, seed: int, padding: int = 0) -> tuple[Classifier, ...]:
    random = np.random.default_rng(seed)
    weights = (random.normal(size=(COLUMNS, CLASSES)).astype(np.float32) for _ in range(count))
    return tuple(Classifier(f"{kind}-{i}", each, padding) for i, each in enumerate(weights))


CLASSIFIERS = _classifiers("net", 8, seed=7)
"""The same ones every time."""
LARGE = _classifiers("large", 3, seed=8, padding=600 * 2**10)
"""Files of which one fits into a MiB."""


class ModelServer:
    """All classifiers over HTTP.

    Attributes:
        url: Of the folder, for pods.
        folder: Where they lie.
    """

    def __init__(self, folder: Path, address: str, port: int = 8080) -> None:
        self.url = f"http://{address}:{port}"
        self.folder = folder
        command = [sys.executable, "-m", "http.server", str(port), "--bind", address, "--directory", folder]
        self.program = Program("models", command, folder.with_name("models.log"))

    def start(self) -> None:
        """Serve from now on."""
        self.folder.mkdir(exist_ok=True)
        for one in CLASSIFIERS:
            (self.folder / f"{one.name}.onnx").write_bytes(one.content)
        self.program.start()


def ensemble(url: str, namespace: str, name: str, members: int = 3, **spec: object) -> Manifest:
    """An ensemble of the first so many classifiers, fetched from `url`; on CPUs unless the spec says otherwise."""
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": [member(url, one) for one in CLASSIFIERS[:members]],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}],
            "combination": {"rule": "Mean", "predictions": "Probabilities"},
            "devices": {"kinds": ["CPU"]},
            **spec,
        },
    }


def member(url: str, one: Classifier, **fields: object) -> Manifest:
    """A classifier as a member of an ensemble."""
    model = {"uri": f"{url}/{one.name}.onnx", "format": "ONNX", "sha256": one.digest}
    return {"name": one.name, "model": model, "batchSizes": list(BATCH_SIZES), **fields}


def profile(
    one: Classifier, namespace: str, device_type: str = "cpu-1", *, memory_mib: float = 128, seconds: float = 1e-4
) -> Manifest:
    """What a classifier costs, so that nothing has to be measured."""
    points = [{"batchSize": size, "seconds": seconds * size**0.5, "memoryMib": memory_mib} for size in BATCH_SIZES]
    return {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": f"{one.name}-{device_type.lower()}", "namespace": namespace},
        "spec": {"model": {"sha256": one.digest}, "deviceType": device_type, "points": points},
    }


def combined(spec: Mapping[str, Any], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an ensemble of classifiers answers, by numpy alone; rules Mean and WeightedMean."""
    by_digest = {one.digest: one for one in (*CLASSIFIERS, *LARGE)}
    members, rule = spec["members"], spec["combination"]["rule"]
    assert rule in ("Mean", "WeightedMean"), rule
    weights = [one.get("weight", 1.0) if rule == "WeightedMean" else 1.0 for one in members]
    predictions = [by_digest[one["model"]["sha256"]].predict(rows) for one in members]
    mean: NDArray[np.float32] = np.average(predictions, axis=0, weights=weights).astype(np.float32)
    return mean
