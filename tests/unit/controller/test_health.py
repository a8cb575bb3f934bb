import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from ensemble_operator.controller.health import Pulse, doors


@pytest.mark.parametrize(
    ("patience", "status", "said"), [(60.0, 200, "ok"), (-1.0, 500, "the loop has not turned for 0 s")]
)
def test_the_probe_fails_when_the_loop_has_not_turned_for_too_long(patience, status, said):
    async def asked():
        pulse = Pulse(patience)
        pulse.beat()
        registry = CollectorRegistry()
        async with (
            doors(liveness_port=0, metrics_port=0, fault=pulse.fault, registry=registry) as (port, _),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/healthz") as answer,
        ):
            return answer.status, await answer.text()

    assert asyncio.run(asked()) == (status, said)
