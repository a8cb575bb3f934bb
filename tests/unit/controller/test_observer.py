import asyncio

import aiohttp
import pytest
from aiohttp import web

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.observer import Observer
from ensemble_operator.controller.resources import PODS
from ensemble_operator.controller.status import Observed


def pod(name, ready="True"):
    labels = {
        "app.kubernetes.io/managed-by": "ensemble-operator",
        "app.kubernetes.io/component": "shard",
        "ensembles.dev/ensemble": "digits",
        "ensembles.dev/role": "head",
    }
    owner = {"uid": "owner", "controller": True}
    metadata = {"name": name, "namespace": "n", "uid": name, "resourceVersion": "1", "creationTimestamp": "t"}
    return {
        "metadata": metadata | {"labels": labels, "ownerReferences": [owner]},
        "spec": {"nodeName": "x"},
        "status": {"podIP": "127.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
    }


class Runtime:
    """A runtime's two documents, over HTTP."""

    def __init__(self):
        self.rows, self.asked = 0, []

    async def __aenter__(self):
        app = web.Application()
        app.add_routes([web.get("/v2/ensemble/devices", self.devices), web.get("/v2/models/digits/stats", self.stats)])
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def devices(self, request):
        self.asked.append("devices")
        return web.json_response([{"name": "gpu0", "kind": "GPU", "type": "T4", "uuid": "GPU-1"}, {"name": "cpu0"}])

    async def stats(self, request):
        self.asked.append("stats")
        return web.json_response({"model_stats": [{"inference_count": self.rows}]})


async def look(observer, times, between):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for _ in range(times):
            await observer.ask_all(session)
            await between()


def test_it_tells_the_gpu_behind_each_slot_and_the_rows_that_were_served():
    told = []

    async def scene():
        async with Runtime() as runtime:
            cache = Cache()
            cache.observe(PODS, pod("one"))

            async def serve():
                runtime.rows += 1000
                await asyncio.sleep(0.05)

            await look(Observer(cache, lambda *seen: told.append(seen), runtime.port), 2, serve)
            assert runtime.asked == ["devices", "stats", "stats"], "devices do not change while a pod lives"

    asyncio.run(scene())
    (_, first), (owner, second) = told
    assert owner == "owner" and second.uuids == {("one", "gpu0"): "GPU-1"}
    assert first.rate is None and 0 < second.rate <= 1000 / 0.05


def test_what_no_pod_tells_any_more_is_not_told_either():
    told = []

    async def scene():
        cache = Cache()
        cache.observe(PODS, pod("one"))
        async with Runtime() as runtime:
            observer = Observer(cache, lambda _, seen: told.append(seen), runtime.port)

            async def serve():
                runtime.rows += 1000
                await asyncio.sleep(0.05)

            await look(observer, 2, serve)
        await look(observer, 1, lambda: asyncio.sleep(0))
        cache.forget(PODS, pod("one"))
        await look(observer, 2, lambda: asyncio.sleep(0))

    asyncio.run(scene())
    uuids = {("one", "gpu0"): "GPU-1"}
    assert told[1].rate > 0 and told[2:] == [Observed(uuids), Observed()]


@pytest.mark.parametrize("ready", ["True", "False"])
def test_who_does_not_answer_or_is_not_ready_is_left_alone(ready):
    told = []

    async def scene():
        cache = Cache()
        cache.observe(PODS, pod("one", ready))
        await look(Observer(cache, lambda *seen: told.append(seen), 9), 3, lambda: asyncio.sleep(0))

    asyncio.run(scene())
    assert told == []
