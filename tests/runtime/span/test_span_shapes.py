"""Members far away whose rows have no fixed shape, and questions that no head would ask."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROWS = np.ones((2, 4), "f4")


def scaled(path: Path, factor: float) -> str:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "length"]) for name in "xy"]
    constant = numpy_helper.from_array(np.float32(factor), "factor")
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = helper.make_graph([node], "scaled", ends[:1], ends[1:], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path.as_uri()


def test_rows_of_any_length_come_back_in_their_shape(start: Any, configs: Any, tmp_path: Path) -> None:
    tensors = {"datatype": "FP32", "shape": [-1], "maxLength": 16}
    changes = {
        "inputs": [{"name": "x", **tensors}],
        "outputs": [{"name": "y", **tensors}],
        "combination": {"rule": "Mean", "predictions": "Values"},
    }
    shard_config = configs.shard(**changes)
    head_config = configs.head(shard_config["listen"]["port"], **changes)
    for config in (shard_config, head_config):
        for member in config["members"]:
            factor = int(member["name"][1:])
            member["model"]["uri"] = scaled(tmp_path / f"{member['name']}.onnx", factor)
    start(shard_config).ready()
    head = start(head_config).ready()

    def ask(seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=(1 + seed % 3, 1 + seed % 7)).astype("f4")
        status, document, answer = head.infer(values, parameters={"return_members": True})
        assert status == 200, document
        np.testing.assert_allclose(answer["y"], values * 1.5, rtol=1e-5)
        np.testing.assert_allclose(answer["y@m3"], values * 3, rtol=1e-5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(60)))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"outputs": [{"name": "y"}]}, "expected <output>@<member>"),
        ({}, "expected <output>@<member>"),
        ({"outputs": [{"name": "y@m0"}]}, "no output is named"),
        ({"partial": {"rule": "Mean", "predictions": "Values", "shares": {"m0": 1.0}}}, "expected members of m2, m3"),
        ({"partial": {"rule": "Mean", "predictions": "Values", "shares": {}}}, "expected members of m2, m3"),
        ({"partial": {"rule": "Median", "predictions": "Values", "shares": {"m2": 1.0}}}, "needs each member's rows"),
        ({"partial": {"rule": "Sum", "predictions": "Values", "shares": {"m2": 1.0}}}, "partial: "),
        ({"partial": 3}, "partial: "),
    ],
)
def test_a_shard_refuses_what_it_cannot_answer(fields: dict[str, Any], complaint: str, shard: Any) -> None:
    known = {"Authorization": "Bearer correct-horse"}
    status, body, _ = shard.post("/v2/ensemble/shard/infer", ROWS, known, **fields)
    assert status == 400
    assert complaint in json.loads(body)["error"]
