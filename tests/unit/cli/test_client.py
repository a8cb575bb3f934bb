"""The client of the protocol: tensors there and back, load, and what it makes of failures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.cli.connection import connect
from ensemble_operator.cli.errors import DataError, ServerRefusedError, ServerUnreachableError
from ensemble_operator.cli.loading import Load, put_load, random_rows
from ensemble_operator.cli.predicting import predict, read_rows
from ensemble_operator.cli.server import Server, Tensor, find, is_ready
from ensemble_operator.cli.tensors import checked, decode, encode
from ensemble_runtime.config import Datatype


class Fake(Protocol):
    """The fixture of this folder."""

    url: str
    refusals: int
    fail_with: tuple[int, bytes] | None
    rows_seen: list[int]
    parameters_seen: list[dict[str, Any]]
    json_answers: bool


def server(*tensors: Tensor) -> Server:
    return Server("http://h:1", "m", tensors, 64, None)


X = Tensor("x", Datatype.FP32, (4,))


def test_a_server_is_asked_what_it_serves(fake: Fake) -> None:
    for url in (fake.url, f"{fake.url}/", f"{fake.url}/v2/models/sum"):
        assert find(url) == Server(fake.url, "sum", (X,), 64, None)
    assert is_ready(fake.url)
    with pytest.raises(ServerRefusedError, match="404 no such model"):
        find(f"{fake.url}/v2/models/other")


def test_rows_come_back_in_order_whatever_the_size_of_requests(fake: Fake) -> None:
    x = np.arange(4 * 150, dtype=np.float32).reshape(150, 4)
    answer = predict(find(fake.url), {"x": x}, rows_per_request=7, parameters={"return_members": True})
    assert answer.outputs["y"].tolist() == x.sum(axis=1, keepdims=True).tolist()
    assert sum(fake.rows_seen) == 150
    assert max(fake.rows_seen) == 7
    assert fake.parameters_seen[0]["return_members"] is True


def test_the_servers_limit_of_rows_counts(fake: Fake) -> None:
    predict(find(fake.url), {"x": np.ones((100, 4), np.float32)}, rows_per_request=1000, parameters={})
    assert sorted(fake.rows_seen) == [36, 64]


def test_answers_in_json_are_read_too(fake: Fake) -> None:
    fake.json_answers = True
    answer = predict(find(fake.url), {"x": np.ones((3, 4))}, rows_per_request=2, parameters={})
    assert answer.outputs["y"].tolist() == [[4], [4], [4]]


def test_a_full_server_is_asked_again(fake: Fake) -> None:
    fake.refusals = 5
    answer = predict(find(fake.url), {"x": np.ones((3, 4))}, rows_per_request=1, parameters={})
    assert answer.outputs["y"].tolist() == [[4], [4], [4]]


def test_a_failure_is_told_in_the_servers_words(fake: Fake) -> None:
    fake.fail_with = (500, b'{"error": "member cnn failed"}')
    with pytest.raises(ServerRefusedError, match="500 member cnn failed"):
        predict(find(fake.url), {"x": np.ones((3, 4))}, rows_per_request=1, parameters={})
    with pytest.raises(ServerRefusedError, match="500 member cnn failed"):
        put_load(find(fake.url), Load(2, 1, 0.2))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"outputs": [{"name": "y"}]}', b"\xff"])
def test_an_answer_that_is_none_is_refused(fake: Fake, body: bytes) -> None:
    fake.fail_with = (200, body)
    with pytest.raises(ServerRefusedError, match="not of the Open Inference Protocol"):
        predict(find(fake.url), {"x": np.ones((1, 4))}, rows_per_request=1, parameters={})


def test_load_is_counted_within_the_measured_time(fake: Fake) -> None:
    fake.refusals = 1
    result = put_load(find(fake.url), Load(connections=2, rows=3, seconds=0.5))
    assert 0 < result.requests <= len(fake.rows_seen)
    assert set(fake.rows_seen) == {3}
    assert result.refused == 1
    assert result.rows_per_second == result.requests * 3 / 0.5
    document = result.document()
    assert 0 < document["latencyMs"]["p50"] <= document["latencyMs"]["p95"] <= document["latencyMs"]["p99"]
    assert json.loads(json.dumps(document)) == document


def test_nobody_there_is_said_so() -> None:
    with pytest.raises(ServerUnreachableError, match="no server answers at http://127"):
        find("http://127.0.0.1:9")
    assert not is_ready("http://127.0.0.1:9")


def run_against(answer: bytes) -> Exception:
    """What a request meets whose answer is these bytes, after which the server hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run() -> Exception:
        listener = await asyncio.start_server(speak, "127.0.0.1", 0)
        async with listener:
            connection = await connect(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
            with pytest.raises(Exception) as caught:
                await asyncio.wait_for(connection.request(b"GET / HTTP/1.1\r\n\r\n"), 10)
            connection.close()
            return caught.value

    return asyncio.run(run())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"])
def test_a_server_that_hangs_up_is_an_error(answer: bytes) -> None:
    assert isinstance(run_against(answer), ServerUnreachableError)


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nabc", b"x" * 70_000])
def test_what_is_not_http_is_an_error(answer: bytes) -> None:
    assert isinstance(run_against(answer), ServerRefusedError)


datatypes = st.sampled_from(list(Datatype))


@settings(deadline=None)
@given(datatypes, st.lists(st.integers(1, 4), max_size=3), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_tensor_goes_there_and_back(datatype: Datatype, shape: list[int], rows: int, random: Any) -> None:
    count = rows * int(np.prod(shape)) * datatype.itemsize
    raw = bytes(random.randrange(2 if datatype is Datatype.BOOL else 256) for _ in range(count))
    array = np.frombuffer(raw, datatype.numpy).reshape(rows, *shape)
    request = encode(server(Tensor("x", datatype, tuple(shape))), {"x": array}, slice(None), {})
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    at = int(fields["Inference-Header-Content-Length"])
    assert int(fields["Content-Length"]) == len(body)
    answer = json.dumps({"outputs": json.loads(body[:at])["inputs"]}).encode()
    decoded = decode(answer + body[at:], len(answer)).outputs["x"]
    assert decoded.dtype == array.dtype
    assert decoded.tobytes() == array.tobytes()
    assert decoded.shape == array.shape


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3))}, r"data 'x': got shape \[2, 3\], expected \['rows', 4\]"),
        ({"x": np.ones(4)}, r"data 'x': got shape \[4\]"),
        ({"x": np.ones((0, 4))}, r"got \[0\] rows"),
        ({"x": np.ones((2, 4), complex)}, r"data 'x': got complex128, expected FP32"),
        ({"x": np.array([["a"] * 4])}, r"data 'x': got <U1, expected FP32"),
        ({"x": np.ones((2, 4)), "z": np.ones(2)}, r"data: got x, z, expected the inputs of 'm': x"),
        ({}, r"data: got nothing, expected"),
    ],
)
def test_rows_that_do_not_fit_are_named(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(server(X), arrays)


def test_a_lone_array_needs_no_name() -> None:
    arrays, rows = checked(server(X), {"": np.ones((2, 4), np.int64)})
    assert rows == 2
    assert arrays["x"].dtype == np.dtype(np.float32)


@pytest.mark.parametrize("datatype", [d for d in Datatype if np.dtype(d.numpy).kind in "iu"])
def test_integers_of_any_type_are_taken_up_to_the_limits_of_the_servers(datatype: Datatype, tmp_path: Path) -> None:
    limits = np.iinfo(datatype.numpy)
    for end in (int(limits.min), int(limits.max)):
        (tmp_path / "ids.json").write_text(json.dumps([[end]]))
        arrays, _ = checked(server(Tensor("ids", datatype, (1,))), read_rows(tmp_path / "ids.json"))
        assert arrays["ids"].dtype == np.dtype(datatype.numpy)
        assert arrays["ids"].tolist() == [[end]]


@pytest.mark.parametrize(
    ("datatype", "array", "message"),
    [
        (Datatype.INT8, np.array([[1], [300]]), r"data 'ids': got 300 in row 1, expected INT8 \(-128 to 127\)"),
        (Datatype.UINT8, np.array([[-1]], np.int8), r"data 'ids': got -1 in row 0, expected UINT8 \(0 to 255\)"),
        (Datatype.UINT64, np.array([[-1]]), r"got -1 in row 0, expected UINT64"),
        (Datatype.INT64, np.array([[2**63]], np.uint64), r"got 9223372036854775808 in row 0, expected INT64"),
        (Datatype.FP16, np.array([[np.inf], [1e6]]), r"got 1000000.0 in row 1, expected FP16 \(-65504"),
        (Datatype.UINT8, np.array([[1.0]]), r"data 'ids': got float64, expected UINT8 \(uint8\)"),
    ],
)
def test_values_that_would_become_others_are_named(datatype: Datatype, array: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(server(Tensor("ids", datatype, (1,))), {"ids": array})


@pytest.mark.parametrize(("longest", "length"), [(None, 16), (5, 5), (1024, 16)])
def test_random_rows_keep_to_the_longest_that_the_server_takes(longest: int | None, length: int) -> None:
    rows = random_rows(server(Tensor("ids", Datatype.INT64, (-1, 3), longest)), 2)
    assert rows["ids"].shape == (2, length, 3)


def test_two_inputs_need_as_many_rows() -> None:
    pair = server(X, Tensor("ids", Datatype.INT64, (-1,)))
    checked(pair, {"x": np.ones((2, 4)), "ids": np.ones((2, 7), int)})
    with pytest.raises(DataError, match=r"got \[2, 3\] rows"):
        checked(pair, {"x": np.ones((2, 4)), "ids": np.ones((3, 7), int)})
    with pytest.raises(DataError, match="data 'ids': got float64, expected INT64"):
        checked(pair, {"x": np.ones((2, 4)), "ids": np.ones((2, 7))})


def test_rows_are_read_from_all_three_kinds_of_file(tmp_path: Path) -> None:
    x = np.ones((2, 4), np.float32)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x=x)
    (tmp_path / "a.json").write_text(json.dumps(x.tolist()))
    (tmp_path / "b.json").write_text(json.dumps({"x": x.tolist()}))
    for name in ("a.npy", "a.npz", "a.json", "b.json"):
        np.testing.assert_array_equal(checked(server(X), read_rows(tmp_path / name))[0]["x"], x)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[[1, 2], [3]]"),
        ("a.npy", b"no"),
        ("a.npz", b"PK\x03\x04 no"),
        ("a.npy", b""),
        ("a.csv", b"1,2"),
    ],
)
def test_files_that_hold_no_rows_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_rows(tmp_path / name)


def test_pickled_rows_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_rows(tmp_path / "a.npy")
