import asyncio

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from ensemble_operator.controller.kube import Kube, KubeError, answered
from ensemble_operator.controller.main import kopf_settings
from ensemble_operator.controller.resources import PODS

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}}


class Server:
    """Answers with the statuses given, one a request; the last stays."""

    def __init__(self, *answers):
        self.answers, self.seen, self.counted = list(answers), [], []

    async def answer(self, request):
        self.seen.append((request.method, request.path_qs, await request.text()))
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(body, status=status, headers=headers)

    def run(self, scene):
        async def play():
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
            try:
                async with ApiClient(configuration) as client:
                    return await scene(Kube(client, lambda *told: self.counted.append(told)))
            finally:
                await runner.cleanup()

        return asyncio.run(play())


def said(status, message="on purpose", **headers):
    return status, {"message": message}, headers


def listed(names, more=None):
    metadata = {"resourceVersion": "7"} | ({"continue": more} if more else {})
    return 200, {"items": [{"metadata": {"name": n}} for n in names], "metadata": metadata}, {}


@pytest.mark.parametrize("busy", [429, 500, 503, 409])
def test_an_apply_that_meets_a_busy_server_is_repeated(busy):
    server = Server(said(busy), said(busy), (201, POD, {}))

    assert server.run(lambda kube: kube.apply(POD)) == POD
    assert [status for _, _, status in server.counted] == [busy, busy, 201]
    method, path, _ = server.seen[0]
    assert method == "PATCH" and path == "/api/v1/namespaces/n/pods/p?fieldManager=ensemble-operator&force=true"


def test_a_refusal_is_final_and_says_why():
    server = Server(said(422, "spec.containers: required"))

    with pytest.raises(KubeError, match=r"spec\.containers: required") as caught:
        server.run(lambda kube: kube.apply(POD))
    assert caught.value.status == 422 and len(server.seen) == 1


def test_it_waits_as_long_as_the_server_asks():
    server = Server(said(429, **{"Retry-After": "1"}), (200, POD, {}))

    async def timed(kube):
        loop = asyncio.get_running_loop()
        before = loop.time()
        await kube.apply(POD)
        return loop.time() - before

    assert server.run(timed) >= 1


def test_long_lists_come_in_pages_and_begin_anew_when_they_expire():
    server = Server(listed("ab", more="x"), said(410, "expired"), listed("ab", more="y"), listed("c"))
    found = server.run(lambda kube: kube.list(PODS, namespace="n", selector="a=b"))

    assert [item["metadata"]["name"] for item in found.items] == ["a", "b", "c"] and found.version == 7
    assert "labelSelector=a%3Db" in server.seen[0][1] and "continue=y" in server.seen[-1][1]


def test_what_is_gone_or_is_another_one_by_now_is_not_deleted():
    assert Server(said(404)).run(lambda kube: kube.delete(PODS, "n", "p", "uid")) is None
    other = Server(said(409, "uid"))
    assert other.run(lambda kube: kube.delete(PODS, "n", "p", "uid")) is None
    assert len(other.seen) == 1 and '"uid": "uid"' in other.seen[0][2]


@pytest.mark.parametrize("at_once", [False, True])
def test_only_what_nobody_could_confirm_is_deleted_without_time_to_end(at_once):
    server = Server((200, POD, {}))
    server.run(lambda kube: kube.delete(PODS, "n", "p", "uid", at_once=at_once))

    assert ('"gracePeriodSeconds": 0' in server.seen[0][2]) == at_once


def test_a_status_is_written_to_no_namesake():
    body = {"kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "old"}, "status": {}}
    server = Server(said(409, "uid"))

    assert server.run(lambda kube: kube.apply_status(body)) is None
    assert len(server.seen) == 1 and server.seen[0][1].startswith("/api/v1/namespaces/n/pods/p/status?")


def test_a_server_that_is_away_is_waited_for_and_one_that_refuses_is_not():
    answers = [KubeError("away", 0), KubeError("busy", 429), KubeError("starts", 503), "here"]

    async def ask():
        answer = answers.pop(0)
        if isinstance(answer, KubeError):
            raise answer
        return answer

    assert asyncio.run(answered(ask, 0.0)) == "here"
    answers[:] = [KubeError("no", 403)]
    with pytest.raises(KubeError, match="no"):
        asyncio.run(answered(ask, 0.0))


def test_watches_are_never_given_up():
    for _ in range(2):
        pauses = iter(kopf_settings({}).networking.error_backoffs)
        found = [next(pauses) for _ in range(1000)]
        assert found[0] < 1 and set(found[20:]) == {30.0}
