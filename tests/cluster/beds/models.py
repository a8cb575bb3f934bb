"""Small ONNX models for ensembles of the tests, and a plain web server that hands them out inside the enclosure."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from beds.client import Manifest
from beds.processes import Program

COLUMNS, CLASSES = 8, 4


@dataclass(frozen=True)
class Classifier:
    """A linear map and a softmax, which numpy can compute as well."""

    name: str
    weights: NDArray[np.float32]

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model puts out for these rows."""
        scores = rows @ self.weights
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    def write(self, folder: Path) -> str:
        """Write NAME.onnx; returns its digest."""
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
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        content = model.SerializeToString()
        (folder / f"{self.name}.onnx").write_bytes(content)
        return hashlib.sha256(content).hexdigest()


def classifiers(count: int) -> list[Classifier]:
    """As many different classifiers, the same ones every time."""
    random = np.random.default_rng(7)
    return [Classifier(f"net-{i}", random.normal(size=(COLUMNS, CLASSES)).astype(np.float32)) for i in range(count)]


class ModelServer:
    """A folder of models over HTTP; whatever is written to `folder` is there at once."""

    def __init__(self, folder: Path, address: str, port: int = 8080) -> None:
        self.folder = folder
        self.url = f"http://{address}:{port}"
        command = [sys.executable, "-m", "http.server", str(port), "--bind", address, "--directory", folder]
        self.program = Program("models", command, folder.with_name("models.log"))

    def start(self) -> None:
        """Serve from now on."""
        self.folder.mkdir(exist_ok=True)
        self.program.start()

    def ensemble(self, namespace: str, name: str, members: int = 3, **spec: object) -> Manifest:
        """An ensemble of so many classifiers, on CPUs unless the spec says otherwise; its models are written."""
        listed = [
            {
                "name": one.name,
                "model": {
                    "uri": f"{self.url}/{one.name}.onnx",
                    "format": "ONNX",
                    "sha256": one.write(self.folder),
                },
                "batchSizes": [1, 8, 32],
            }
            for one in classifiers(members)
        ]
        return {
            "apiVersion": "ensembles.dev/v1alpha1",
            "kind": "InferenceEnsemble",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "members": listed,
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [COLUMNS]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [CLASSES]}],
                "combination": {"rule": "Mean", "predictions": "Probabilities"},
                "devices": {"kinds": ["CPU"]},
                **spec,
            },
        }
