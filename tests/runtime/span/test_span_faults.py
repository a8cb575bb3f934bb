"""What becomes of requests when the other runtime is lost, slow to come, or a stranger asks."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

MEMBERS = ("m0", "m1", "m2", "m3")
ROWS = np.random.default_rng(3).normal(size=(2, 4)).astype("f4")


@contextmanager
def load(head: Any, connections: int = 4) -> Iterator[list[tuple[float, int, dict[str, Any]]]]:
    """Ask all the time; yields the answers so far: when, status, document."""
    answers: list[tuple[float, int, dict[str, Any]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, document, _ = head.infer(ROWS)
            answers.append((time.monotonic(), status, document))

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for_more(head: Any, answers: list[Any], wanted: int = 20, status: int = 200) -> None:
    """Until so many more answers with a status have come."""
    begin = len(answers)
    head.until(lambda: sum(code == status for _, code, _ in answers[begin:]) >= wanted)


def test_a_lost_shard_is_named_and_comes_back_by_itself(start: Any, configs: Any) -> None:
    shard = start(configs.shard()).ready()
    head = start(configs.head(shard.port)).ready()
    with load(head) as answers:
        wait_for_more(head, answers)
        shard.kill()
        wait_for_more(head, answers, status=500)
        status, body = head.get("/v2/health/ready")
        assert status == 503
        assert "m2, m3" in body and "shard 'far'" in body
        assert set(head.metric("ensemble_remote_up").values()) == {0.0}
        shard.start()
        wait_for_more(head, answers)
    head.ready()
    assert {status for _, status, _ in answers} == {200, 500}
    for _, status, document in answers:
        if status == 500:
            assert re.search(r"m[23]: is out of reach \(shard 'far' at http://", document["error"])
            assert "m0" not in document["error"]
    codes = [status for _, status, _ in answers]
    first, last = codes.index(500), len(codes) - 1 - codes[::-1].index(500)
    assert set(codes[:first]) == {200} and set(codes[last + 1 :]) == {200}


def test_a_quorum_answers_without_a_lost_shard(start: Any, configs: Any, models: Any) -> None:
    shard = start(configs.shard()).ready()
    quorum = {"minMembers": 2, "deadlineMs": 60_000}
    serving = {"quorum": quorum, "timeoutMs": 90_000, "hosting": "PerDevice"}
    head = start(configs.head(shard.port, serving=serving)).ready()
    with load(head) as answers:
        wait_for_more(head, answers)
        shard.kill()
        head.until(lambda: any("parameters" in document for _, _, document in answers))
        wait_for_more(head, answers)
    assert {status for _, status, _ in answers} == {200}
    _, document, tensors = head.infer(ROWS)
    assert document["parameters"]["members_used"] == "m0,m1"
    assert "m2: is out of reach" in document["parameters"]["members_missing"]
    expected = (models.outputs("m0", ROWS) + models.outputs("m1", ROWS)) / 2
    np.testing.assert_allclose(tensors["y"], expected, rtol=1e-5, atol=1e-6)
    assert head.get("/v2/health/ready")[0] == 200  # two members are enough


@pytest.mark.parametrize("role", ["gateway", "m2@cpu", "combiner"])
def test_a_process_of_the_shard_that_dies_fails_nothing(role: str, start: Any, configs: Any) -> None:
    shard = start(configs.shard()).ready()
    head = start(configs.head(shard.port)).ready()
    with load(head) as answers:
        wait_for_more(head, answers)
        os.kill(shard.pid(role), signal.SIGKILL)
        wait_for_more(head, answers, 40)
    assert {status for _, status, _ in answers} == {200}


def test_the_remote_process_of_the_head_can_die(start: Any, configs: Any) -> None:
    shard = start(configs.shard()).ready()
    head = start(configs.head(shard.port)).ready()
    with load(head) as answers:
        wait_for_more(head, answers)
        os.kill(head.pid("m2@far"), signal.SIGKILL)
        wait_for_more(head, answers, 40)
    assert {status for _, status, _ in answers} == {200}
    assert max(head.metric("ensemble_cell_restarts_total").values()) == 1


def test_a_head_waits_for_its_shard_and_says_so(start: Any, configs: Any) -> None:
    config = configs.shard()
    head = start(configs.head(config["listen"]["port"]))
    head.until(lambda: "shard 'far'" in head.get("/v2/health/ready")[1])
    assert head.get("/v2/health/live")[0] == 200
    status, body = head.get("/v2/health/ready")
    assert status == 503 and "Connection refused" in body
    assert head.infer(ROWS)[0] == 503
    start(config)
    head.ready()
    assert head.infer(ROWS)[0] == 200


def test_a_head_whose_shard_never_comes_ends_with_its_name(start: Any, configs: Any) -> None:
    head = start(configs.head(1, serving={"startupTimeoutMs": 3000}))
    assert head.process.wait(60) == 73
    assert "shard 'far' at http://127.0.0.1:1: Connection refused" in head.log


def test_strangers_are_refused(shard: Any) -> None:
    target, outputs = "/v2/ensemble/shard/infer", [{"name": "y@m2", "parameters": {"binary_data": True}}]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "correct-horse"}):
        status, body, _ = shard.post(target, ROWS, headers, outputs=outputs)
        assert status == 403 and b"token" in body
        assert b"correct-horse" not in body
    known = {"Authorization": "Bearer correct-horse"}
    assert shard.post(target, ROWS, known, outputs=outputs)[0] == 200
    # Over the slow lane as well, which an expectation leads to.
    assert shard.post(target, ROWS, known | {"Accept-Encoding": "gzip"}, outputs=outputs)[0] == 200
    # The public way is closed, with the token or without.
    for headers in ({}, known):
        status, body, _ = shard.post("/v2/models/ensemble/infer", ROWS, headers)
        assert status == 403 and b"ask its head" in body
    assert "correct-horse" not in shard.log


def test_a_head_with_another_token_is_refused_and_never_says_the_token(
    start: Any, configs: Any, shard: Any, tmp_path: Any
) -> None:
    other = tmp_path / "other"
    other.write_text("battery-staple")
    config = configs.head(shard.port)
    config["remotes"][0]["tokenFile"] = str(other)
    head = start(config)
    head.until(lambda: "the token is wrong" in head.get("/v2/health/ready")[1])
    assert head.get("/v2/health/ready")[0] == 503
    assert "battery-staple" not in head.log


@pytest.mark.parametrize(("content", "complaint"), [(None, "cannot read"), ("", "no token"), ("two words", "no token")])
def test_without_a_token_nothing_starts(
    content: str | None, complaint: str, start: Any, configs: Any, tmp_path: Any
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    shard = start(configs.shard(shard={"tokenFile": str(file)}))
    assert shard.process.wait(60) == 65
    assert complaint in shard.log


def test_a_shard_that_hangs_is_given_up_after_the_timeout(start: Any, configs: Any) -> None:
    shard = start(configs.shard()).ready()
    head = start(configs.head(shard.port, serving={"timeoutMs": 1500})).ready()
    assert head.infer(ROWS)[0] == 200
    gateway = shard.pid("gateway")
    os.kill(gateway, signal.SIGSTOP)
    status, document, _ = head.infer(ROWS)
    assert status in (500, 504) and "m2" in document["error"]
    os.kill(gateway, signal.SIGCONT)
    head.until(lambda: head.infer(ROWS)[0] == 200)


def test_a_full_shard_is_asked_again(start: Any, configs: Any) -> None:
    """More connections than the shard has room for requests: some are told to come back, and do."""
    shard = start(configs.shard(serving={"queueRequests": 1, "hosting": "PerDevice"})).ready()
    config = configs.head(shard.port)
    config["remotes"][0]["connections"] = 4
    config["cells"] = [cell | {"batchSize": 1} for cell in config["cells"]]
    head = start(config).ready()
    with load(head, connections=8) as answers:
        wait_for_more(head, answers, 60)
    assert {status for _, status, _ in answers} == {200}
    refused = shard.metric("ensemble_inference_request_failure_total")
    assert sum(count for labels, count in refused.items() if "rejected" in labels) > 0


def test_a_head_whose_gateway_dies_serves_again(start: Any, configs: Any) -> None:
    shard = start(configs.shard()).ready()
    head = start(configs.head(shard.port)).ready()
    assert head.infer(ROWS)[0] == 200
    os.kill(head.pid("gateway"), signal.SIGKILL)
    head.until(lambda: head.get("/v2/health/ready")[0] == 200 and head.infer(ROWS)[0] == 200)
    assert len(head.processes()) == 6  # supervisor, gateway, combiner, forge, its cells, its shard's
