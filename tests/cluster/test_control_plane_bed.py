"""The bed itself: what it says of faults, rights and requests is what the API server did."""

from __future__ import annotations

import http.client
import threading
import time

import pytest

from beds.client import ApiError
from beds.controlplane import ControlPlane
from beds.faults import FaultyProxy

pytestmark = pytest.mark.timeout(300)


def config_map(namespace: str, name: str = "kept") -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


def test_a_service_account_has_no_rights_and_the_audit_log_says_so(control_plane: ControlPlane, namespace: str) -> None:
    mark = control_plane.mark()
    token = control_plane.service_account(namespace, "nobody")
    with pytest.raises(ApiError) as refusal:
        control_plane.client(token).items(f"/api/v1/namespaces/{namespace}/pods")
    assert refusal.value.code == 403
    user = f"system:serviceaccount:{namespace}:nobody"
    refused = [r for r in control_plane.requests(user, since=mark) if r.code == 403]
    assert [(r.verb, r.resource, r.namespace) for r in refused] == [("list", "pods", namespace)]


def test_restricted_namespaces_refuse_privileged_pods(control_plane: ControlPlane) -> None:
    name = control_plane.namespace(enforce="restricted")
    container = {"name": "c", "image": "i", "securityContext": {"privileged": True}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": name},
        "spec": {"containers": [container]},
    }
    with pytest.raises(ApiError, match="violates PodSecurity"):
        control_plane.admin.create(pod)


def test_objects_survive_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    path = control_plane.admin.path(control_plane.admin.create(config_map(namespace)))
    with control_plane.without_apiserver(), pytest.raises(ConnectionRefusedError):
        control_plane.admin.get(path)
    assert control_plane.admin.exists(path)


def test_a_held_etcd_makes_reads_hang_until_it_goes_on(control_plane: ControlPlane, namespace: str) -> None:
    path = control_plane.admin.path(control_plane.admin.create(config_map(namespace)))
    answers: list[bool] = []
    with control_plane.held(control_plane.etcd):
        asking = threading.Thread(target=lambda: answers.append(control_plane.admin.exists(path)))
        asking.start()
        time.sleep(0.3)
        assert not answers
    asking.join(30)
    assert answers == [True]


def test_the_proxy_refuses_so_many_requests_and_passes_the_rest(control_plane: ControlPlane, namespace: str) -> None:
    with FaultyProxy(control_plane.url, control_plane.ca) as proxy:
        proxy.times(2, 409, lambda method, path: method == "POST")
        create = f"/api/v1/namespaces/{namespace}/configmaps"
        codes = [_ask(proxy, control_plane, "POST", create) for _ in range(3)]
        assert codes[:2] == [409, 409]
        assert codes[2] == 422  # passed on to the API server, which misses the body's name
        assert proxy.refused == 2


def test_the_proxy_cuts_watches(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.admin.create(config_map(namespace))
    with FaultyProxy(control_plane.url, control_plane.ca) as proxy:
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
        path = f"/api/v1/namespaces/{namespace}/configmaps?watch=true"
        connection.request("GET", path, headers={"Authorization": f"Bearer {control_plane.token()}"})
        answer = connection.getresponse()
        assert b"ADDED" in answer.readline()
        assert proxy.cut_watches() == 1
        with pytest.raises(http.client.IncompleteRead):
            answer.read()


def _ask(proxy: FaultyProxy, plane: ControlPlane, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    body = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}'
    headers = {"Authorization": f"Bearer {plane.token()}", "Content-Type": "application/json"}
    connection.request(method, path, body, headers)
    return connection.getresponse().status
