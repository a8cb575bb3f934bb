"""tritonclient as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

VALUES = np.random.default_rng(0).random((8, 400), np.float32)


@pytest.fixture
def served(start: Any) -> Any:
    return start(tensors=[{"name": "x", "datatype": "FP32", "shape": [400]}])


@pytest.fixture
def client(served: Any) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as client:
        yield client


def tensor(values: np.ndarray[Any, Any], binary: bool, name: str = "x") -> triton.InferInput:
    given = triton.InferInput(name, list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_infer(client: Any, binary_in: bool, binary_out: bool | None, coding: str | None) -> None:
    outputs = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    for _ in range(2):
        result = client.infer(
            "digits",
            [tensor(VALUES, binary_in)],
            outputs=outputs,
            request_id="42",
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        np.testing.assert_allclose(result.as_numpy("y"), VALUES + 1, rtol=1e-6)
        assert result.get_response()["id"] == "42"


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "3")
    assert not client.is_model_ready("other") and not client.is_model_ready("digits", "4")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 400]
    assert client.get_model_config("digits", "3")["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_repository_index()[0]["name"] == "digits"


def test_readiness_is_told(served: Any, client: Any) -> None:
    served.pipeline.reason = "loading"
    assert client.is_server_live() and not client.is_server_ready() and not client.is_model_ready("digits")
    with pytest.raises(InferenceServerException, match="not ready: loading") as caught:
        client.infer("digits", [tensor(VALUES, True)])
    assert caught.value.status() == "503"


def test_statistics(client: Any) -> None:
    client.infer("digits", [tensor(VALUES, True)])
    for stats in (client.get_inference_statistics("digits"), client.get_inference_statistics()):
        (model,) = stats["model_stats"]
        assert model["inference_count"] == 8
        assert model["inference_stats"]["success"]["count"] == 1


def test_parameters_and_our_outputs(served: Any, client: Any) -> None:
    result = client.infer(
        "digits",
        [tensor(VALUES, True)],
        outputs=[triton.InferRequestedOutput(name) for name in ("y", "y@c", "disagreement.variance")],
        priority=1,
        timeout=5_000_000,
        parameters={"min_members": 2, "deadline": 1000},
    )
    np.testing.assert_allclose(result.as_numpy("y@c"), VALUES + 2, rtol=1e-6)
    assert result.as_numpy("disagreement.variance").shape == (8,)
    assert served.pipeline.seen[-1].priority == 1


@pytest.mark.parametrize(
    ("model", "name", "version", "status"),
    [("other", "x", "", "404"), ("digits", "x", "4", "404"), ("digits", "z", "", "400")],
)
def test_errors_are_understood(client: Any, model: str, name: str, version: str, status: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [tensor(VALUES, True, name)], model_version=version)
    assert caught.value.status() == status
    assert "while decoding" not in caught.value.message()


def test_many_at_once(served: Any) -> None:
    with triton.InferenceServerClient(served.url, concurrency=8) as client:
        pending = [client.async_infer("digits", [tensor(VALUES + i, True)]) for i in range(40)]
        for i, request in enumerate(pending):
            np.testing.assert_allclose(request.get_result().as_numpy("y"), VALUES + i + 1, rtol=1e-6)
