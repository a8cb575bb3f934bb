"""The kserve client as it is: a second, independent reading of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from httpx import HTTPStatusError
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)


def with_client(served: Any, use: Callable[[InferenceRESTClient, str], Awaitable[None]]) -> None:
    async def main() -> None:
        client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
        await use(client, f"http://{served.url}")

    asyncio.run(main())


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(served: Any, binary_in: bool, binary_out: bool) -> None:
    async def use(client: InferenceRESTClient, url: str) -> None:
        given = InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(VALUES, binary_data=binary_in)
        asked = [RequestedOutput("y", parameters={"binary_data": binary_out})]
        request = InferRequest(model_name="digits", infer_inputs=[given], request_id="9", request_outputs=asked)
        response = await client.infer(url, request, model_name="digits")
        np.testing.assert_array_equal(response.outputs[0].as_numpy(), VALUES + 1)
        assert (response.id, response.model_name) == ("9", "digits")

    with_client(served, use)


def test_health(served: Any) -> None:
    async def use(client: InferenceRESTClient, url: str) -> None:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "digits")
        assert not await client.is_model_ready(url, "other")

    with_client(served, use)


def test_errors_are_understood(served: Any) -> None:
    async def use(client: InferenceRESTClient, url: str) -> None:
        given = InferInput("z", [2, 4], "FP32")
        given.set_data_from_numpy(VALUES)
        with pytest.raises(HTTPStatusError) as caught:
            await client.infer(url, InferRequest(model_name="digits", infer_inputs=[given]), model_name="digits")
        assert caught.value.response.status_code == 400
        assert "expected one of x" in caught.value.response.json()["error"]

    with_client(served, use)
