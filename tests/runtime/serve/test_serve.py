"""The runtime's command from its start to its end, through the official client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

Serve = Callable[..., Any]


def test_answers_are_those_of_the_models_also_while_processes_die(
    serve: Serve, config: dict[str, Any], weights: dict[Path, NDArray[np.float32]]
) -> None:
    server = serve(config)
    mean = np.mean(list(weights.values()), axis=0)
    stop = False

    def ask(seed: int) -> int:
        random, answers = np.random.default_rng(seed), 0
        while not stop:
            rows = random.random((int(random.integers(1, 20)), 4), "f4")
            try:
                found = server.infer(rows)
            except InferenceServerException as error:
                # What was in flight is answered; what comes while a member has no worker is sent away.
                assert error.status() == "503", error
                assert "is not ready" in error.message()
                continue
            np.testing.assert_allclose(found, rows @ mean, rtol=1e-5)
            answers += 1
        return answers

    server.address()
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, seed) for seed in range(4)]
        try:
            for role in ("m0@cpu", "combiner", "forge", "m1@cpu"):
                pid = server.pid(role)
                assert pid
                _kill(pid)
                server.until(lambda role=role, pid=pid: server.pid(role) not in (None, pid))
                server.until(lambda: server.ready()[0])
        finally:
            stop = True
        assert all(client.result(60) for client in clients)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    server.assert_gone()


def test_readiness_tells_the_truth_while_a_member_is_away(serve: Serve, config: dict[str, Any]) -> None:
    server = serve(config)
    assert server.ready()[0]
    for _ in range(3):  # each time the pause before the restart grows
        server.until(lambda: server.pid("m0@cpu"))
        pid = server.pid("m0@cpu")
        _kill(pid)
        server.until(lambda pid=pid: server.pid("m0@cpu") != pid)
    ready, body = server.ready()
    assert not ready
    assert "no worker is ready for m0" in json.loads(body)["error"]
    server.until(lambda: server.ready()[0])
    assert server.infer(np.ones((1, 4), "f4")).shape == (1, 3)


def test_a_killed_gateway_comes_back_on_the_same_port(serve: Serve, config: dict[str, Any]) -> None:
    server = serve(config)
    for _ in range(2):
        pid = server.pid("gateway")
        _kill(pid)
        server.until(lambda pid=pid: _answers(server) and server.pid("gateway") not in (None, pid))
        server.until(lambda: server.ready()[0])
        assert server.infer(np.ones((9, 4), "f4")).shape == (9, 3)


def test_kill_9_of_the_parent_leaves_nothing(serve: Serve, config: dict[str, Any]) -> None:
    server = serve(config)
    host, port = server.address().split(":")
    assert len(server.processes()) == 6  # supervisor, gateway, combiner, forge, two cells
    server.process.send_signal(signal.SIGKILL)
    server.assert_gone(2.0)
    # A process is a zombie already when its last threads still hold its sockets.
    server.until(lambda: _refused(host, int(port)), 2.0)


def test_sigterm_answers_the_request_in_flight(serve: Serve, slow_config: dict[str, Any]) -> None:
    server = serve(slow_config)
    rows = np.arange(8, dtype="f4").reshape(2, 4)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.infer, rows)
        server.until(lambda: sum(server.metric("ensemble_inference_pending_request_count").values()) == 1)
        server.process.send_signal(signal.SIGTERM)
        expected = rows.mean(axis=1, keepdims=True) + np.arange(3) / 3
        np.testing.assert_allclose(answer.result(30), expected, rtol=1e-6)
    assert server.process.wait(30) == 0
    server.assert_gone()


def test_slots_become_cores_when_it_starts(serve: Serve, config: dict[str, Any]) -> None:
    slots = [{**device, "cores": [], "type": "cpu-1"} for device in config["devices"]]
    address = serve({**config, "devices": slots}).address()
    with urllib.request.urlopen(f"http://{address}/v2/ensemble/devices", timeout=60) as answer:
        found = json.load(answer)
    assert [device["name"] for device in found] == [device["name"] for device in slots]
    for device in found:  # where others may run on the same cores, it pins to none
        assert len(device["cores"]) in (0, 1)


def test_more_cores_than_there_are_is_told_in_one_line(serve: Serve, config: dict[str, Any]) -> None:
    slots = [{**device, "cores": [], "type": "cpu-4096"} for device in config["devices"]]
    server = serve({**config, "devices": slots})
    assert server.process.wait(30) == 69
    assert "planned" in server.log.read_text().splitlines()[-1]


def test_a_taken_port_and_a_missing_model_have_their_codes(serve: Serve, config: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = serve({**config, "listen": {"port": port}})
        assert taken.process.wait(30) == 72
    missing = serve({**config, "members": [config["members"][0], _elsewhere(config["members"][1])]})
    assert missing.process.wait(30) == 66
    unknown = serve({**config, "membres": []})
    assert unknown.process.wait(30) == 65
    lines = [server.log.read_text().splitlines()[-1] for server in (taken, missing, unknown)]
    assert lines[0] == f"ensemble-runtime: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert lines[1].startswith("ensemble-runtime: ") and "/nowhere.onnx" in lines[1]
    assert lines[2].strip().startswith("membres: ")
    for server in (taken, missing, unknown):
        assert "Traceback" not in server.log.read_text()
        server.assert_gone()


def test_a_model_that_was_evicted_after_it_was_fetched_has_a_code_of_its_own(
    serve: Serve, config: dict[str, Any]
) -> None:
    remote = {"uri": "http://127.0.0.1:9/gone.onnx", "format": "ONNX", "sha256": "0" * 64}
    gone = {**config, "members": [config["members"][0], config["members"][1] | {"model": remote}]}
    servers = [serve(gone), serve(gone, "--fetched")]
    assert [server.process.wait(30) for server in servers] == [66, 75]
    assert "evicted from the cache after it was fetched" in servers[1].log.read_text().splitlines()[-1]
    local = serve({**config, "members": [config["members"][0], _elsewhere(config["members"][1])]}, "--fetched")
    assert local.process.wait(30) == 66, "nobody fetches what lies on a volume"


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def _answers(server: Any) -> bool:
    try:
        server.ready()
    except OSError:
        return False
    return True


def _elsewhere(member: dict[str, Any]) -> dict[str, Any]:
    return {**member, "model": {"uri": "file:///nowhere.onnx", "format": "ONNX"}}


def test_on_its_way_out_it_answers_and_closes_each_connection(serve: Serve, config: dict[str, Any]) -> None:
    server = serve(config)
    connection = http.client.HTTPConnection(server.address(), timeout=30)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 1.0, 1.0, 1.0]}

    def closes(method: str, path: str, body: str | None = None) -> bool:
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
        return answer.getheader("Connection", "").lower() == "close"

    def both() -> set[bool]:
        infer = closes("POST", "/v2/models/ensemble/infer", json.dumps({"inputs": [tensor]}))
        return {infer, closes("GET", "/v2")}

    assert both() == {False}
    server.process.send_signal(signal.SIGUSR1)
    server.until(lambda: both() == {True})
    assert both() == {True}, "new connections are answered too"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
