"""Configurations of ensembles for the gateway's pure parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ensemble_runtime.config import RuntimeConfig


@pytest.fixture
def configure() -> Callable[..., RuntimeConfig]:
    """Two members a and b and a shadow over the given tensors; outputs mirror inputs."""

    def build(inputs: list[dict[str, Any]] | None = None, **changes: Any) -> RuntimeConfig:
        inputs = inputs or [{"name": "x", "datatype": "FP32", "shape": [2]}]
        model = {"uri": "file://./model.onnx", "format": "ONNX"}
        return RuntimeConfig.model_validate(
            {
                "name": "digits",
                "version": "3",
                "members": [{"name": n, "model": model, "shadow": n == "shade"} for n in ("a", "b", "shade")],
                "inputs": inputs,
                "outputs": [dict(tensor, name=f"y{i}") for i, tensor in enumerate(inputs)],
                "devices": [{"name": "gpu-0", "kind": "GPU", "type": "A100", "memoryBytes": 1, "uuid": "GPU-1"}],
                "cells": [{"device": "gpu-0", "member": n, "batchSize": 4} for n in ("a", "b", "shade")],
                **changes,
            }
        )

    return build
