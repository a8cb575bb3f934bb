"""A manifest that is right, for tests to break."""

from __future__ import annotations

import copy
from typing import Any

import pytest

_GOOD: dict[str, Any] = {
    "apiVersion": "ensembles.dev/v1alpha1",
    "kind": "InferenceEnsemble",
    "metadata": {"name": "digits"},
    "spec": {
        "members": [
            {"name": "mlp", "model": {"uri": "file://./mlp.pt2", "format": "TorchExport", "sha256": "a" * 64}},
            {"name": "cnn", "model": {"uri": "https://host/cnn.onnx", "format": "ONNX"}, "weight": 2},
            {"name": "gru", "model": {"uri": "file:///models/gru.onnx", "format": "ONNX"}, "shadow": True},
        ],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [64]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [10]}],
    },
}


@pytest.fixture
def good() -> dict[str, Any]:
    return copy.deepcopy(_GOOD)
