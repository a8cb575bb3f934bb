"""What an ensemble over two runtimes answers: what it would answer in one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble_runtime.config import Combination, Rule
from ensemble_runtime.pipeline.rules import make_fold

MEMBERS = ("m0", "m1", "m2", "m3")
WEIGHTS = (1.0, 2.0, 0.5, 0.0)


def rows(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype("f4")


def combined(rule: str, models: Any, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rule over the members' outputs, all at once."""
    outputs = np.stack([models.outputs(name, values) for name in MEMBERS])
    fold = make_fold(Combination.model_validate({"rule": rule}), WEIGHTS, "f8")
    answer = np.empty_like(outputs[0])
    everything = slice(0, len(answer))
    for place, output in enumerate(outputs):
        fold.fold(answer, everything, place == 0, output, place)
    fold.finish(answer, everything, None, None if fold.streaming else outputs)
    return answer


@pytest.mark.parametrize("rule", [rule.value for rule in Rule if rule is not Rule.STACKING])
def test_every_rule_gives_what_one_runtime_gives(rule: str, start: Any, configs: Any, models: Any, shard: Any) -> None:
    head = start(configs.head(shard.port, combination={"rule": rule})).ready()
    for count in (1, 5, 30):  # one row, a batch, more than the cells' batch sizes
        values = rows(count)
        status, document, tensors = head.infer(values)
        assert status == 200, document
        np.testing.assert_allclose(tensors["y"], combined(rule, models, values), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(head.infer_json(values), tensors["y"], rtol=1e-6)


def test_a_stacking_model_reads_members_of_both_runtimes(start: Any, configs: Any, models: Any, shard: Any) -> None:
    stacking = {"rule": "Stacking", "model": {"uri": models.uri("stacked"), "format": "ONNX"}}
    head = start(configs.head(shard.port, combination=stacking)).ready()
    values = rows(5)
    status, document, tensors = head.infer(values)
    assert status == 200, document
    features = np.concatenate([models.outputs(name, values) for name in MEMBERS], axis=1)
    np.testing.assert_allclose(tensors["y"], features @ models.stacking, rtol=1e-5, atol=1e-6)


def test_members_and_disagreement_can_be_asked_for(start: Any, configs: Any, models: Any, shard: Any) -> None:
    head = start(configs.head(shard.port)).ready()
    values = rows(3)
    _, _, tensors = head.infer(values, parameters={"return_members": True, "disagreement": True})
    outputs = np.stack([models.outputs(name, values) for name in MEMBERS])
    for name, expected in zip(MEMBERS, outputs, strict=True):
        np.testing.assert_allclose(tensors[f"y@{name}"], expected, rtol=1e-5, atol=1e-6)
    assert tensors["disagreement.variance"].shape == (3,)
    assert (tensors["disagreement.variance"] > 0).all()


def test_a_sum_travels_back_unless_members_are_asked_for(start: Any, configs: Any, shard: Any) -> None:
    head = start(configs.head(shard.port)).ready()

    def received(**fields: Any) -> float:
        (before,) = head.metric("ensemble_remote_received_bytes_total").values()
        assert head.infer(rows(8), **fields)[0] == 200
        (after,) = head.metric("ensemble_remote_received_bytes_total").values()
        return after - before

    tensor = rows(8)[:, :3].nbytes
    alone, with_members = received(), received(parameters={"return_members": True})
    assert tensor <= alone
    assert with_members >= alone + 2 * tensor


def test_requests_in_parallel_are_not_mixed_up(start: Any, configs: Any, models: Any, shard: Any) -> None:
    head = start(configs.head(shard.port)).ready()

    def ask(seed: int) -> None:
        values = rows(1 + seed % 12, seed)
        status, document, tensors = head.infer(values)
        assert status == 200, document
        np.testing.assert_allclose(tensors["y"], combined("Mean", models, values), rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(150)))
    (requests,) = head.metric("ensemble_remote_requests_total").values()
    rows_computed = head.metric("ensemble_cell_rows_total")
    assert requests > 0
    assert len(rows_computed) == 4  # one a member and device, however many connections there are
    assert len(set(rows_computed.values())) == 1


def test_a_member_on_both_runtimes_shares_its_work(start: Any, configs: Any, models: Any, shard: Any) -> None:
    config = configs.head(shard.port)
    config["cells"].append({"device": "cpu", "member": "m2", "batchSize": 4})
    head = start(config).ready()
    for seed in range(20):
        values = rows(20, seed)
        status, document, tensors = head.infer(values)
        assert status == 200, document
        np.testing.assert_allclose(tensors["y"], combined("Mean", models, values), rtol=1e-5, atol=1e-6)


def test_a_bad_row_fails_its_own_request_only(start: Any, configs: Any, models: Any) -> None:
    shard = start(configs.shard(files={"m3": "rooted"})).ready()
    head = start(configs.head(shard.port)).ready()

    def ask(seed: int) -> tuple[bool, int, str]:
        values = np.abs(rows(2, seed))
        bad = seed % 5 == 0
        if bad:
            values[1, 0] = -1.0
        status, document, tensors = head.infer(values)
        if status == 200:
            np.testing.assert_allclose(tensors["y"], combined("Mean", models, values), rtol=1e-5, atol=1e-6)
        return bad, status, str(document.get("error"))

    with ThreadPoolExecutor(8) as pool:
        for bad, status, error in pool.map(ask, range(60)):
            assert status == (500 if bad else 200), error
            if bad:
                assert "m3: returned NaN or infinity" in error
                assert "m2" not in error


def test_a_shadow_far_away_is_scored_and_not_combined(start: Any, configs: Any, models: Any, shard: Any) -> None:
    config = configs.head(shard.port)
    config["members"][3]["shadow"] = True
    head = start(config).ready()
    values = rows(4)
    status, document, tensors = head.infer(values)
    assert status == 200, document
    expected = np.mean([models.outputs(name, values) for name in MEMBERS[:3]], axis=0)
    np.testing.assert_allclose(tensors["y"], expected, rtol=1e-5, atol=1e-6)
    label = '{device="far",member="m3"}'
    head.until(lambda: head.metric("ensemble_cell_rows_total").get(label) == 4.0 or None)
