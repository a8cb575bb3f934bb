"""Requests are checked field by field, and what is right is read as it was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.gateway.protocol import RequestParser
from ensemble_runtime.gateway.refusal import RefusedError

Configure = Callable[..., RuntimeConfig]

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.fixture
def parser(configure: Configure) -> RequestParser:
    return RequestParser(configure(), max_rows=8)


def parse(parser: RequestParser, document: object) -> Any:
    return parser.parse(json.dumps(document).encode())


def refusal(parser: RequestParser, document: object) -> str:
    with pytest.raises(RefusedError) as caught:
        parse(parser, document)
    assert caught.value.status == 400
    return caught.value.message


def test_a_plain_request_asks_for_every_output(parser: RequestParser) -> None:
    request = parse(parser, {"inputs": [X], "id": "7"})
    assert (request.id, request.rows, request.shapes, request.binary_bytes) == ("7", 1, ((2,),), 0)
    assert [(c.name, c.binary) for c in request.outputs] == [("y0", False)]
    index, array = request.arrays[0]
    assert index == 0 and array.tolist() == [1, 2] and array.dtype == np.dtype("<f4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "z"}, "inputs[0].name: expected one of x, got 'z'"),
        ({"name": None}, "inputs[0].name: expected one of x, got nothing"),
        ({"datatype": "FP64"}, "inputs[0].datatype: expected FP32 for input 'x', got 'FP64'"),
        ({"datatype": "FLOAT"}, "inputs[0].datatype: expected FP32 for input 'x', got 'FLOAT'"),
        ({"shape": [2]}, "inputs[0].shape: expected [batch, 2] for input 'x', got [2]"),
        ({"shape": [1, 3]}, "inputs[0].shape: expected [batch, 2] for input 'x', got [1, 3]"),
        ({"shape": [1, 2, 1]}, "inputs[0].shape: expected [batch, 2] for input 'x', got [1, 2, 1]"),
        ({"shape": [-1, 2]}, "inputs[0].shape: expected an array of positive integers, the batch first, got [-1, 2]"),
        ({"shape": [0, 2]}, "inputs[0].shape: expected an array of positive integers, the batch first, got [0, 2]"),
        ({"shape": [True, 2]}, "inputs[0].shape: expected an array of positive integers"),
        ({"shape": [1.0, 2]}, "inputs[0].shape: expected an array of positive integers"),
        ({"shape": "1,2"}, "inputs[0].shape: expected an array of positive integers"),
        ({"shape": [9, 2]}, "inputs[0].shape: at most 8 rows a request, got 9"),
        ({"data": [1]}, "inputs[0].data: expected 2 elements, as the shape says, got 1"),
        ({"data": ["a", "b"]}, "inputs[0].data: expected numbers for FP32, found a string"),
        ({"parameters": {"binary_data_size": 7}, "data": None}, "binary_data_size: expected 8 bytes"),
        ({"parameters": {"binary_data_size": -8}}, "binary_data_size: expected 8 bytes"),
        ({"parameters": {"binary_data_size": "8"}}, "binary_data_size: expected 8 bytes"),
        ({"parameters": {"binary_data_size": 8}}, "expected either `data` or `parameters.binary_data_size`, got both"),
        ({"parameters": []}, "inputs[0].parameters: expected a JSON object, got an array"),
    ],
)
def test_a_wrong_input_is_named(parser: RequestParser, change: dict[str, Any], message: str) -> None:
    assert message in refusal(parser, {"inputs": [X | change]})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the request: expected a JSON object, got an array"),
        ({}, "inputs: expected an array of tensors, got nothing"),
        ({"inputs": {}}, "inputs: expected an array of tensors, got an object"),
        ({"inputs": []}, "inputs: missing x"),
        ({"inputs": [7]}, "inputs[0]: expected a JSON object, got a number"),
        ({"inputs": [X, X]}, "inputs[1].name: input 'x' is given twice"),
        ({"inputs": [X], "id": 7}, "id: expected a string, got a number"),
        ({"inputs": [{k: v for k, v in X.items() if k != "data"}]}, "inputs[0]: expected `data`, or `parameters"),
        ({"inputs": [X], "outputs": {}}, "outputs: expected an array"),
        ({"inputs": [X], "outputs": [{"name": "z"}]}, "outputs[0].name: no output is named 'z'; expected one of y0,"),
        ({"inputs": [X], "outputs": [{"name": "y0@shade"}]}, "outputs[0].name: no output is named 'y0@shade'"),
        ({"inputs": [X], "outputs": [{"name": "disagreement.luck"}]}, "no output is named 'disagreement.luck'"),
        ({"inputs": [X], "outputs": [{}]}, "outputs[0].name: expected the name of an output, got nothing"),
        (
            {"inputs": [X], "outputs": [{"name": "y0", "parameters": {"classification": 3}}]},
            "outputs[0].parameters.classification: not supported",
        ),
        (
            {"inputs": [X], "outputs": [{"name": "y0", "parameters": {"binary_data": 1}}]},
            "outputs[0].parameters.binary_data: expected true or false, got 1",
        ),
        ({"inputs": [X], "parameters": 1}, "parameters: expected a JSON object, got a number"),
        ({"inputs": [X], "parameters": {"priority": -1}}, "parameters.priority: expected an integer from 0"),
        ({"inputs": [X], "parameters": {"timeout": 0}}, "parameters.timeout: expected microseconds, above 0"),
        ({"inputs": [X], "parameters": {"timeout": True}}, "parameters.timeout: expected microseconds, above 0"),
        ({"inputs": [X], "parameters": {"min_members": 3}}, "parameters.min_members: expected an integer from 1 to 2"),
        ({"inputs": [X], "parameters": {"min_members": 1}}, "a quorum needs min_members and deadline; add deadline"),
        ({"inputs": [X], "parameters": {"deadline": 5}}, "a quorum needs min_members and deadline; add min_members"),
        ({"inputs": [X], "parameters": {"return_members": "yes"}}, "parameters.return_members: expected true or false"),
    ],
)
def test_a_wrong_request_is_named(parser: RequestParser, document: object, message: str) -> None:
    assert message in refusal(parser, document)


def test_json_that_is_none_is_refused(parser: RequestParser) -> None:
    for raw in (b"", b"{", b"\xff", b"[" * 5000, b'{"inputs": [NaN]}'):
        with pytest.raises(RefusedError, match="not valid JSON"):
            parser.parse(raw)


def test_a_long_value_is_cut_short_in_the_message(parser: RequestParser) -> None:
    assert len(refusal(parser, {"inputs": [X | {"datatype": "F" * 10_000}]})) < 300


def test_options_are_read_in_their_units(parser: RequestParser) -> None:
    parameters = {"priority": 2, "timeout": 250_000, "min_members": 1, "deadline": 20, "unknown": "passes"}
    options = parse(parser, {"inputs": [X], "parameters": parameters}).options
    assert (options.priority, options.timeout, options.min_members, options.deadline) == (2, 0.25, 1, 0.02)


def test_a_timeout_beyond_the_servers_limit_is_the_servers_limit(parser: RequestParser) -> None:
    assert parse(parser, {"inputs": [X], "parameters": {"timeout": 3_000_000_000}}).options.timeout == 30


@pytest.mark.parametrize(
    "parameters", [{"min_members": 1, "deadline": 5}, {"min_members": 2}, {"deadline": 5}], ids=str
)
def test_a_stacking_model_cannot_do_with_a_quorum(configure: Configure, parameters: dict[str, int]) -> None:
    combination = {"rule": "Stacking", "model": {"uri": "file:///top.onnx", "format": "ONNX"}}
    parser = RequestParser(configure(combination=combination), max_rows=8)
    assert "rule Stacking needs every member" in refusal(parser, {"inputs": [X], "parameters": parameters})
    assert parse(parser, {"inputs": [X], "parameters": {"timeout": 5000}}).options.timeout == 0.005


def test_half_a_quorum_completes_the_configured_one(configure: Configure) -> None:
    serving = {"quorum": {"minMembers": 1, "deadlineMs": 50}}
    parser = RequestParser(configure(serving=serving), max_rows=8)
    assert parse(parser, {"inputs": [X], "parameters": {"min_members": 2}}).options.min_members == 2
    assert parse(parser, {"inputs": [X], "parameters": {"deadline": 10}}).options.deadline == 0.01


def test_outputs_are_chosen_and_their_encoding_with_them(parser: RequestParser) -> None:
    outputs = [
        {"name": "disagreement.variance"},
        {"name": "y0@b", "parameters": {"binary_data": False}},
        {"name": "y0"},
    ]
    request = parse(parser, {"inputs": [X], "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert [(c.name, c.binary, c.member, c.signal) for c in request.outputs] == [
        ("disagreement.variance", True, None, "variance"),
        ("y0@b", False, "b", None),
        ("y0", True, None, None),
    ]
    assert request.options.disagreement


def test_members_and_disagreement_come_besides_on_request(parser: RequestParser) -> None:
    parameters = {"return_members": True, "disagreement": True}
    request = parse(parser, {"inputs": [X], "parameters": parameters})
    names = [choice.name for choice in request.outputs]
    assert names[:3] == ["y0", "y0@a", "y0@b"]
    assert names[3:] == [
        f"disagreement.{signal}" for signal in ("variance", "predictive_entropy", "mutual_information", "vote_margin")
    ]


def test_inputs_in_any_order_keep_their_place(configure: Configure) -> None:
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 2], "maxLength": 5},
        {"name": "mask", "datatype": "BOOL", "shape": [3]},
    ]
    parser = RequestParser(configure(inputs), max_rows=8)
    mask = {"name": "mask", "shape": [2, 3], "datatype": "BOOL", "parameters": {"binary_data_size": 6}}
    image = {"name": "image", "shape": [2, 5, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 20}}
    request = parse(parser, {"inputs": [mask, image]})
    assert (request.shapes, request.binary, request.binary_bytes) == (((5, 2), (3,)), (1, 0), 26)
    assert "inputs: missing mask" in refusal(parser, {"inputs": [image]})
    assert "expected 2 rows as in the inputs before, got 1" in refusal(
        parser, {"inputs": [mask, image | {"shape": [1, 5, 2]}]}
    )
    assert "expected [batch, 1..5, 2] for input 'image', got [2, 6, 2]" in refusal(
        parser, {"inputs": [mask, image | {"shape": [2, 6, 2]}]}
    )


def test_a_raw_request_is_one_row_with_at_most_one_variable_dimension(configure: Configure) -> None:
    fixed = RequestParser(configure(), max_rows=8)
    assert fixed.parse_raw(8).shapes == ((2,),)
    variable = RequestParser(
        configure([{"name": "x", "datatype": "FP32", "shape": [-1, 2], "maxLength": 3}]), max_rows=8
    )
    assert variable.parse_raw(24).shapes == ((3, 2),)
    assert all(choice.binary for choice in variable.parse_raw(24).outputs)
    for parser, size in ((fixed, 16), (fixed, 7), (fixed, 0), (variable, 32), (variable, 12), (variable, 0)):
        with pytest.raises(RefusedError, match="expected one row of input 'x'"):
            parser.parse_raw(size)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_but_a_refusal_comes_of_a_mangled_request(parser: RequestParser, data: st.DataObject) -> None:
    tensor = dict(X)
    document: dict[str, Any] = {"inputs": [tensor], "outputs": [{"name": "y0"}], "parameters": {"priority": 1}}
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([tensor, document, document["outputs"], document["parameters"]]))
        value = data.draw(json_values)
        if isinstance(place, list):
            place.append(value)
        else:
            names = ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "timeout"]
            place[data.draw(st.sampled_from(names))] = value
        if not isinstance(document["outputs"], list) or not isinstance(document["parameters"], dict):
            break
    try:
        raw = json.dumps(document).encode()
    except ValueError:
        return
    try:
        request = parser.parse(raw)
    except RefusedError as error:
        assert error.status == 400 and error.message
    else:
        assert 1 <= request.rows <= 8
