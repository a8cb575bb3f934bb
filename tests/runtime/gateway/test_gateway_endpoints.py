"""Everything that is not inference: what is served, how it is, and what it has done."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ensemble_operator.cli.loading import Load, put_load
from ensemble_operator.cli.server import find

INFER = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [0] * 8}]}


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_describes_itself(served: Any, path: str) -> None:
    document = served.get(path).json
    assert set(document) == {"name", "version", "extensions"}
    assert "binary_tensor_data" in document["extensions"]


@pytest.mark.parametrize("version", ["", "/versions/3"])
def test_the_model_describes_itself(served: Any, version: str) -> None:
    assert served.get(f"/v2/models/digits{version}").json == {
        "name": "digits",
        "versions": ["3"],
        "platform": "ensemble",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    assert served.get(f"/v2/models/digits{version}/config").json["max_batch_size"] == 64
    assert served.get(f"/v2/models/digits{version}/ready").json == {"name": "digits", "ready": True}
    assert served.get("/v2/models").json == {"models": ["digits"]}


def test_the_configuration_tells_how_long_variable_inputs_may_be(start: Any) -> None:
    served = start(
        tensors=[
            {"name": "x0", "datatype": "FP32", "shape": [4]},
            {"name": "x1", "datatype": "FP32", "shape": [-1], "maxLength": 5},
        ]
    )
    server = find(f"http://{served.url}")
    assert [tensor.max_length for tensor in server.inputs] == [None, 5]
    result = put_load(server, Load(connections=1, rows=2, seconds=0.1))
    assert result.requests


def test_health_is_told_in_words_and_status(served: Any) -> None:
    assert served.get("/v2/health/live").json == {"live": True}
    response = served.get("/v2/health/ready")
    assert (response.status, response.json) == (200, {"live": True, "ready": True})
    served.pipeline.reason = "no worker for b"
    response = served.get("/v2/health/ready")
    assert response.status == 503
    assert response.json == {"live": True, "ready": False, "error": "not ready: no worker for b"}
    response = served.get("/v2/models/digits/ready")
    assert response.status == 503 and "no worker for b" in response.json["error"]
    assert served.get("/v2/health/live").status == 200


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize("model", ["other", "digits/versions/4", "%2e%2e", "digits%00"])
def test_unknown_models_and_versions_are_404(served: Any, model: str, suffix: str) -> None:
    response = served.get(f"/v2/models/{model}{suffix}")
    assert response.status == 404
    assert response.json["error"]


@pytest.mark.parametrize("path", ["/v2/models/other/infer", "/v2/models/digits/versions/4/infer"])
def test_inference_of_unknown_models_is_404(served: Any, path: str) -> None:
    response = served.post(json.dumps(INFER).encode(), path=path)
    assert response.status == 404 and "unknown" in response.json["error"]


@pytest.mark.parametrize(
    "path", ["/", "/v1/models/digits", "/v2/model", "/v2/models/digits/infer/more", "/favicon.ico"]
)
def test_unknown_paths_are_404(served: Any, path: str) -> None:
    assert (served.get(path).status, served.get(path).json) == (404, {"error": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/models/digits/infer"), ("DELETE", "/v2"), ("POST", "/metrics")]
)
def test_wrong_methods_are_405(served: Any, method: str, path: str) -> None:
    response = served.get(path, method)
    assert (response.status, response.json) == (405, {"error": "Method Not Allowed"})
    assert response.headers["allow"]


@pytest.mark.parametrize("length", [None, 0])
def test_inference_without_a_body_is_400(served: Any, length: int | None) -> None:
    response = served.post(b"", Content_Length=length)
    assert response.status == 400 and "not valid JSON" in response.json["error"]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nBad Header: 1\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nX: " + b"a" * 20_000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_malformed_http_is_400_in_json(served: Any, raw: bytes) -> None:
    response = served.exchange(raw)
    assert response.status == 400
    assert response.json["error"].startswith("malformed HTTP: ")
    assert "Traceback" not in response.body.decode()


def test_the_repository_holds_one_model(served: Any) -> None:
    index = [{"name": "digits", "version": "3", "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready": true}'):
        assert served.post(body, path="/v2/repository/index").json == index
    served.pipeline.reason = "loading"
    assert served.post(b'{"ready": true}', path="/v2/repository/index").json == []
    for body in (b"[", b"[]", b'{"ready": 1}'):
        assert served.post(body, path="/v2/repository/index").status == 400
    assert served.post(b" " * 5000, path="/v2/repository/index").status == 413


@pytest.mark.parametrize("coding", [{}, {"Content_Length": None, "Transfer_Encoding": "chunked"}])
def test_a_repository_index_may_come_in_pieces(served: Any, coding: dict[str, str | None]) -> None:
    body = b'{"ready": true}'
    if coding:
        body = b"2\r\n" + body[:2] + b"\r\nd\r\n" + body[2:] + b"\r\n0\r\n\r\n"
    head = served.head(body, path="/v2/repository/index", **coding)
    with served.wire() as wire:
        wire.say(head)
        for i in range(len(body)):
            wire.say(body[i : i + 1])
        response = wire.hear()
    assert response is not None and response.status == 200
    assert [model["name"] for model in response.json] == ["digits"]


def test_a_repository_index_is_bounded_in_bytes_and_time(start: Any) -> None:
    served = start(serving={"timeoutMs": 300})
    path = "/v2/repository/index"
    with served.wire() as wire:  # a limit that only the body's end tells of
        wire.say(served.head(b"", path=path, Content_Length=None, Transfer_Encoding="chunked"))
        for _ in range(5):
            wire.say(b"400\r\n" + b" " * 1024 + b"\r\n")
        response = wire.hear()
        assert response is not None and response.status == 413
    with served.wire() as wire:
        wire.say(served.head(b" " * 5000, path=path))
        response = wire.hear()
        assert response is not None and response.status == 413
    with served.wire() as wire:
        wire.say(served.head(b"{}", path=path) + b"{")
        response = wire.hear()
        assert response is not None and response.status == 408
        assert response.json == {"error": "the request took longer than 0.3 s to arrive"}


def test_the_devices_are_told(served: Any) -> None:
    assert served.get("/v2/ensemble/devices").json == [
        {"name": "cpu-0", "kind": "CPU", "type": "cpu-1", "uuid": None, "pciBusId": None, "cores": [0]}
    ]


def test_both_lanes_count_into_the_same_statistics(served: Any) -> None:
    for lane in ("fast", "aiohttp"):
        served.post_json(INFER, lane)
        served.post_json({}, lane)
    (stats,) = served.get("/v2/models/digits/stats").json["model_stats"]
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == (
        "digits",
        "3",
        4,
        2,
    )
    durations = stats["inference_stats"]
    assert durations["success"]["count"] == durations["compute_infer"]["count"] == 2
    assert durations["fail"]["count"] == 2
    assert durations["success"]["ns"] == sum(
        durations[f"compute_{part}"]["ns"] for part in ("input", "infer", "output")
    )
    assert stats["last_inference"] > 1_700_000_000_000
    assert served.get("/v2/models/stats").json["model_stats"][0]["name"] == "digits"


def test_metrics_are_prometheus_and_true(served: Any) -> None:
    served.post_json(INFER)
    served.post_json(INFER, "aiohttp")
    served.post_json({})
    served.pipeline.failing["b"] = "broken"
    served.post_json(INFER)
    response = served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }
    model = (("model", "digits"), ("version", "3"))
    assert samples["ensemble_inference_request_success_total", *model] == 2
    assert samples["ensemble_inference_count_total", *model] == 4
    assert samples["ensemble_inference_pending_request_count", *model] == 0
    assert samples["ensemble_inference_request_seconds_count", *model] == 2
    failure = "ensemble_inference_request_failure_total"
    assert samples[failure, model[0], ("reason", "invalid"), model[1]] == 1
    assert samples[failure, model[0], ("reason", "member_failed"), model[1]] == 1
    assert samples["ensemble_inference_member_missing_total", ("member", "b"), *model] == 1
    cell = (("device", "cpu-0"), ("member", "a"))
    assert samples["ensemble_inference_exec_count_total", *cell] == 5
    assert samples["ensemble_cell_busy_seconds_total", *cell] == 0.25
    memory = [value for key, value in samples.items() if key[0] == "ensemble_process_resident_bytes"]
    assert len(memory) == 1 and memory[0] > 1 << 20
