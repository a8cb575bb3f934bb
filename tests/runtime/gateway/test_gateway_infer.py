"""Inference through both lanes: the same answers, the same refusals."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ensemble_runtime.config import Datatype

X = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
VALUES = np.arange(8, dtype="<f4").reshape(2, 4)
AS_JSON = {"inputs": [X | {"data": VALUES.tolist()}]}
AS_BINARY = {"inputs": [X | {"parameters": {"binary_data_size": 32}}]}
SIGNALS = ("variance", "predictive_entropy", "mutual_information", "vote_margin")

mirrored = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return AS_JSON | {"parameters": parameters}


def test_the_lanes_are_what_they_are_called(served: Any, lane: str) -> None:
    """aiohttp names itself; so all tests that run through both lanes do."""
    response = served.post_json(AS_JSON, lane)
    assert ("aiohttp" in response.headers.get("server", "")) == (lane == "aiohttp")


def test_json_in_json_out(served: Any, lane: str) -> None:
    response = served.post_json(AS_JSON | {"id": "17"}, lane)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json == {
        "model_name": "digits",
        "model_version": "3",
        "id": "17",
        "outputs": [{"name": "y", "shape": [2, 4], "datatype": "FP32", "data": (VALUES + 1).ravel().tolist()}],
    }


def test_binary_in_binary_out(served: Any, lane: str) -> None:
    for _ in range(3):
        document = AS_BINARY | {"parameters": {"binary_data_output": True}}
        response = served.post_binary(document, VALUES.tobytes(), lane)
        assert response.status == 200
        assert response.headers["content-type"] == "application/octet-stream"
        (output,) = response.json["outputs"]
        assert output == {"name": "y", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": 32}}
        assert "id" not in response.json
        np.testing.assert_array_equal(np.frombuffer(response.tensors, "<f4"), (VALUES + 1).ravel())


def test_the_version_may_be_named(served: Any, lane: str) -> None:
    body = json.dumps(AS_JSON).encode()
    assert served.post(body, lane, path="/v2/models/digits/versions/3/infer").status == 200


def test_a_raw_body_is_one_row_and_comes_back_binary(served: Any, lane: str) -> None:
    response = served.post(VALUES[1].tobytes(), lane, Inference_Header_Content_Length=0)
    assert response.status == 200
    assert response.json["outputs"][0]["shape"] == [1, 4]
    np.testing.assert_array_equal(np.frombuffer(response.tensors, "<f4"), VALUES[1] + 1)


@pytest.fixture
def mirror(start: Any) -> Any:
    """An ensemble of inputs of all types, with variable shapes, whose outputs are its inputs."""
    tensors = [
        {"name": f"x{kind}", "datatype": kind.value, "shape": [-1] * (i % 3), "maxLength": 4}
        for i, kind in enumerate(Datatype)
    ]
    return start(tensors=tensors, members=["a"])


@mirrored
@given(data=st.data())
def test_every_type_and_shape_survives_both_ways(mirror: Any, data: st.DataObject) -> None:
    served = mirror
    rows = data.draw(st.integers(1, 5))
    tensors, blobs, expected = [], [], {}
    for spec in data.draw(st.permutations(served.config.inputs)):
        shape = (rows, *(data.draw(st.integers(1, 4)) for _ in spec.shape))
        dtype = np.dtype(spec.datatype.numpy)
        elements = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
        array = data.draw(npst.arrays(dtype, shape, elements=elements))
        entry: dict[str, Any] = {"name": spec.name, "shape": shape, "datatype": spec.datatype.value}
        if data.draw(st.booleans()):
            blobs.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = (array if data.draw(st.booleans()) else array.ravel()).tolist()
        tensors.append(entry)
        expected[spec.name.replace("x", "y")] = array
    asked = data.draw(st.lists(st.sampled_from(sorted(expected)), min_size=1, unique=True))
    outputs = [{"name": name, "parameters": {"binary_data": data.draw(st.booleans())}} for name in asked]
    response = served.post_binary(
        {"inputs": tensors, "outputs": outputs}, b"".join(blobs), data.draw(st.sampled_from(["fast", "aiohttp"]))
    )
    assert response.status == 200, response.body
    assert [output["name"] for output in response.json["outputs"]] == asked
    at = 0
    for output in response.json["outputs"]:
        array = expected[output["name"]]
        if size := output.get("parameters", {}).get("binary_data_size"):
            found = np.frombuffer(response.tensors[at : at + size], array.dtype)
            at += size
        else:
            found = np.array(output["data"], array.dtype)
        np.testing.assert_array_equal(found.reshape(output["shape"]), array)
    if "inference-header-content-length" in response.headers:
        assert at == len(response.tensors)


def test_members_answer_by_name_and_by_request(served: Any, lane: str) -> None:
    outputs = [{"name": "y@c", "parameters": {"binary_data": True}}, {"name": "y"}]
    response = served.post_json(AS_JSON | {"outputs": outputs}, lane)
    assert [output["name"] for output in response.json["outputs"]] == ["y@c", "y"]
    np.testing.assert_array_equal(np.frombuffer(response.tensors, "<f4"), (VALUES + 2).ravel())
    response = served.post_json(with_parameters(return_members=True), lane)
    data = {output["name"]: output["data"] for output in response.json["outputs"]}
    assert list(data) == ["y", "y@a", "y@b", "y@c"]
    assert data["y@b"] == (VALUES + 1).ravel().tolist()


def test_disagreement_comes_on_request(served: Any, lane: str) -> None:
    response = served.post_json(with_parameters(disagreement=True), lane)
    outputs = response.json["outputs"]
    assert [output["name"] for output in outputs] == ["y", *(f"disagreement.{signal}" for signal in SIGNALS)]
    assert outputs[4] == {
        "name": "disagreement.vote_margin", "shape": [2], "datatype": "FP32", "data": [1.5, 1.5]
    }  # fmt: skip
    assert served.pipeline.seen[-1].disagreement


def test_options_reach_the_pipeline(served: Any, lane: str) -> None:
    served.post_json(with_parameters(priority=1, timeout=2_000_000, min_members=2, deadline=1500), lane)
    options = served.pipeline.seen[-1]
    assert (options.priority, options.timeout, options.min_members, options.deadline) == (1, 2, 2, 1.5)
    assert not options.disagreement


def test_a_partial_answer_says_so(served: Any, lane: str) -> None:
    served.pipeline.delays["c"] = 30
    served.pipeline.failing["b"] = "out of memory"
    response = served.post_json(with_parameters(min_members=1, deadline=30, return_members=True), lane)
    assert response.status == 200
    assert response.json["parameters"] == {
        "partial": True,
        "members_used": "a",
        "members_missing": "c: deadline passed; b: out of memory",
    }
    assert [output["name"] for output in response.json["outputs"]] == ["y", "y@a"]
    assert response.json["outputs"][0]["data"] == VALUES.ravel().tolist()


def test_a_configured_quorum_needs_no_asking(start: Any, lane: str) -> None:
    served = start(serving={"quorum": {"minMembers": 2, "deadlineMs": 30}})
    served.pipeline.delays["c"] = 30
    document = AS_BINARY | {"parameters": {"binary_data_output": True}}
    response = served.post_binary(document, VALUES.tobytes(), lane)
    assert response.json["parameters"]["members_used"] == "a,b"
    np.testing.assert_array_equal(np.frombuffer(response.tensors, "<f4"), (VALUES + 0.5).ravel())


def test_a_failed_member_is_named(served: Any, lane: str) -> None:
    served.pipeline.failing["b"] = "wrong shape"
    response = served.post_json(AS_JSON, lane)
    assert (response.status, response.json) == (500, {"error": "members failed: b: wrong shape"})
    served.pipeline.failing.clear()
    assert served.post_json(AS_JSON, lane).status == 200


def test_a_timeout_names_who_is_missing(served: Any, lane: str) -> None:
    served.pipeline.delays["c"] = 30
    response = served.post_json(with_parameters(timeout=20_000), lane)
    assert (response.status, response.json) == (504, {"error": "timed out; missing members: c: deadline passed"})


def test_a_full_pipeline_says_when_to_come_back(served: Any, lane: str) -> None:
    served.pipeline.room = False
    for response in (served.post_json(AS_JSON, lane), served.post_binary(AS_BINARY, VALUES.tobytes(), lane)):
        assert (response.status, response.headers["retry-after"]) == (503, "3")
        assert response.json == {"error": "the queue is full"}


def test_before_all_members_are_ready_requests_are_refused(served: Any, lane: str) -> None:
    served.pipeline.reason = "no worker for c"
    response = served.post_json(AS_JSON, lane)
    assert (response.status, response.json) == (503, {"error": "model 'digits' is not ready: no worker for c"})
    assert "retry-after" in response.headers
    served.pipeline.reason = ""
    assert served.post_json(AS_JSON, lane).status == 200


def test_more_rows_than_there_will_ever_be_room_for_are_refused(served: Any, lane: str) -> None:
    response = served.post_json({"inputs": [X | {"shape": [65, 4], "data": [0] * 260}]}, lane)
    assert (response.status, response.json) == (
        400,
        {"error": "inputs[0].shape: at most 64 rows a request, got 65; send several requests"},
    )


BINARY_FAULTS = [
    (32, 31, None, "add up to 32 bytes, but 31 follow the JSON"),
    (32, 33, None, "add up to 32 bytes, but 33 follow the JSON"),
    (31, 31, None, "binary_data_size: expected 32 bytes"),
    (32, 32, "seven", "Inference-Header-Content-Length: expected the JSON's bytes"),
    (32, 32, -1, "Inference-Header-Content-Length: expected the JSON's bytes"),
    (32, 32, 100_000, "Inference-Header-Content-Length: expected the JSON's bytes"),
    (32, 32, 3, "not valid JSON"),
    (32, 32, 0, "expected one row of input 'x'"),
]


@pytest.mark.parametrize(("said", "sent", "header", "message"), BINARY_FAULTS)
def test_binary_bodies_that_do_not_add_up(
    served: Any, lane: str, said: int, sent: int, header: object, message: str
) -> None:
    document = {"inputs": [X | {"parameters": {"binary_data_size": said}}]}
    extra = {} if header is None else {"Inference_Header_Content_Length": header}
    response = served.post_binary(document, bytes(sent), lane, **extra)
    assert response.status == 400
    assert message in response.json["error"]


@pytest.mark.parametrize(("sent", "message"), [(31, "fewer bytes"), (33, "more bytes")])
def test_compressed_bodies_that_do_not_add_up(served: Any, sent: int, message: str) -> None:
    header = json.dumps(AS_BINARY).encode()
    body = gzip.compress(header + bytes(sent))
    response = served.post(body, "aiohttp", Content_Encoding="gzip", Inference_Header_Content_Length=len(header))
    assert response.status == 400 and message in response.json["error"]


def test_a_bool_is_zero_or_one(start: Any, lane: str) -> None:
    served = start(tensors=[{"name": "x", "datatype": "BOOL", "shape": [2]}])
    document = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}
    response = served.post_binary(document, b"\0\2", lane)
    assert (response.status, response.json) == (400, {"error": "inputs: the bytes of BOOL input 'x' must be 0 or 1"})
    assert served.post_binary(document, b"\0\1", lane).json["outputs"][0]["data"] == [False, True]


def test_json_that_is_none_is_refused_and_the_connection_lives_on(served: Any, lane: str) -> None:
    good = json.dumps(AS_JSON).encode()
    with served.wire() as wire:
        for body, status in ((b"{", 400), (good, 200), (b"[]", 400), (b'{"inputs": []}', 400), (good, 200)):
            wire.say(served.head(body, lane) + body)
            response = wire.hear()
            assert response is not None and response.status == status
            assert status == 200 or response.json["error"]


def test_a_body_beyond_the_limit_is_413(start: Any, lane: str) -> None:
    served = start(serving={"maxBodyMib": 1})
    with served.wire() as wire:
        wire.say(served.head(bytes((1 << 20) + 1), lane))
        response = wire.hear()
    assert response is not None and response.status == 413
    assert "larger than 1048576 bytes" in response.json["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_grows_beyond_the_limit_is_413(start: Any, coding: str) -> None:
    served = start(serving={"maxBodyMib": 1})
    bomb = b" " * (200 << 20)
    body = gzip.compress(bomb, 1) if coding == "gzip" else zlib.compress(bomb, 1)
    response = served.post(body, "aiohttp", Content_Encoding=coding)
    assert response.status == 413
    body = json.dumps(AS_JSON).encode()
    assert served.post(gzip.compress(body), "aiohttp", Content_Encoding="gzip").status == 200


def test_tensors_that_grow_beyond_the_limit_are_413(start: Any) -> None:
    served = start(serving={"maxBodyMib": 1}, tensors=[{"name": "x", "datatype": "UINT8", "shape": [1 << 19]}])
    tensor = {"name": "x", "shape": [3, 1 << 19], "datatype": "UINT8", "parameters": {"binary_data_size": 3 << 19}}
    header = json.dumps({"inputs": [tensor]}).encode()
    body = gzip.compress(header + bytes(3 << 19))
    response = served.post(body, Content_Encoding="gzip", Inference_Header_Content_Length=len(header))
    assert response.status == 413


def test_a_chunked_body_is_served_and_bounded(start: Any) -> None:
    served = start(serving={"maxBodyMib": 1})
    body = json.dumps(AS_JSON).encode()
    head = f"POST {served.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert served.exchange(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).status == 200
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with served.wire() as wire:
        wire.say(head + chunk * 17)
        response = wire.hear()
    assert response is not None and response.status == 413


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "x" * 200])
def test_an_unknown_content_coding_is_415(served: Any, coding: str) -> None:
    response = served.post(b"body", Content_Encoding=coding)
    assert response.status == 415
    assert "expected gzip or deflate" in response.json["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_only_claims_to_be_compressed_is_400(served: Any, coding: str) -> None:
    response = served.post(b"this is no compressed body at all", Content_Encoding=coding)
    assert response.status == 400
    assert "cannot be read" in response.json["error"]


@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_long_answers_are_compressed_for_who_asks(start: Any, lane: str, coding: str, rows: int) -> None:
    """8 rows are coded on the event loop, 64 in a thread."""
    served = start(tensors=[{"name": "x", "datatype": "FP32", "shape": [512]}])
    values = np.random.default_rng(0).random((rows, 512), np.float32)
    document = {
        "inputs": [X | {"shape": [rows, 512], "parameters": {"binary_data_size": values.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    response = served.post_binary(document, values.tobytes(), lane, Accept_Encoding=coding)
    assert response.headers["content-encoding"] == coding
    size = int(response.headers["inference-header-content-length"])
    body = gzip.decompress(response.body) if coding == "gzip" else zlib.decompress(response.body)
    np.testing.assert_allclose(np.frombuffer(body[size:], "<f4"), (values + 1).ravel(), rtol=1e-6)


def test_short_answers_are_not(served: Any, lane: str) -> None:
    response = served.post_json(AS_JSON, lane, Accept_Encoding="gzip")
    assert response.status == 200 and "content-encoding" not in response.headers


def test_large_json_is_decoded_beside_the_event_loop(start: Any, lane: str) -> None:
    served = start(tensors=[{"name": "x", "datatype": "FP32", "shape": [4096]}])
    values = np.random.default_rng(0).random((16, 4096), np.float32)
    tensor = X | {"shape": [16, 4096]}
    response = served.post_json({"inputs": [tensor | {"data": values.tolist()}]}, lane)
    assert response.status == 200
    np.testing.assert_allclose(response.json["outputs"][0]["data"], (values + 1).ravel(), rtol=1e-6)
    response = served.post_json({"inputs": [tensor | {"data": ["wrong"] * values.size}]}, lane)
    assert response.status == 400 and "found a string" in response.json["error"]


def test_a_long_json_part_before_binary_tensors(start: Any, lane: str) -> None:
    tensors = [{"name": n, "datatype": "FP32", "shape": [s]} for n, s in (("x0", 16384), ("x1", 4))]
    served = start(tensors=tensors, members=["a"])
    values = np.random.default_rng(0).random((1, 16384), np.float32)
    document = {
        "inputs": [
            {"name": "x1", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
            {"name": "x0", "shape": [1, 16384], "datatype": "FP32", "data": values.tolist()},
        ],
        "outputs": [{"name": "y1"}, {"name": "y0"}],
    }
    response = served.post_binary(document, VALUES[1].tobytes(), lane)
    first, second = response.json["outputs"]
    assert first["data"] == VALUES[1].tolist()
    np.testing.assert_allclose(second["data"], values.ravel(), rtol=1e-6)
