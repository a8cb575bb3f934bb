"""The chart on a real API server: every object is accepted, its role is enough and no more, its CRDs outlive it.

No kubelet runs here: the operator is a process that has the ServiceAccount's token and the Deployment's environment.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.binaries import provide
from beds.helm import CHART, Helm, Object
from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space, ensemble
from beds.processes import wait_for
from test_chart_rendering import EVERYTHING, VALUES, of_kind

pytestmark = pytest.mark.timeout(300)
# The first three are the Prometheus operator's; the test pod needs its ServiceAccount first, and has a test of its own.
NOT_TRIED = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "Pod")
ACCOUNT = "ens-ensembles"


@pytest.fixture(scope="module")
def installer(kwok: Kwok, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(provide(["helm"], print)["helm"], tmp_path_factory.mktemp("installer"), kwok.plane.kubeconfig())


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    names = kwok.add(gpu_node("chart-a", count=4))
    yield names
    kwok.remove(names)


def started(kwok: Kwok, installer: Helm, release_namespace: str, values: Mapping[str, Any]) -> Operator:
    """The operator as the chart's Deployment would start it."""
    (deployment,) = of_kind(installer.template(values, namespace=release_namespace), "Deployment")
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    settings = {e["name"].removeprefix("ENSEMBLES_").lower(): e["value"] for e in env}
    token = kwok.plane.service_account(release_namespace, ACCOUNT)
    return Operator(kwok.plane, token=token, **settings | {"liveness_port": 0, "metrics_port": 0})


def uids(kwok: Kwok, objects: list[Object]) -> dict[str, str]:
    admin = kwok.plane.admin
    return {f"{o['kind']}/{o['metadata']['name']}": admin.get(admin.path(o))["metadata"]["uid"] for o in objects}


def kept(objects: list[Object]) -> list[Object]:
    """What a release installs: without the hooks of `helm test`."""
    return [o for o in objects if "helm.sh/hook" not in o["metadata"].get("annotations", {})]


@pytest.mark.parametrize("values", VALUES)
def test_the_api_server_takes_every_object(kwok: Kwok, helm: Helm, namespace: str, values: dict[str, Any]) -> None:
    objects = [o for o in helm.template(values, namespace=namespace) if o["kind"] not in NOT_TRIED]
    command = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-")
    said = kwok.plane.kubectl(*command, manifests=objects, namespace=namespace)
    assert len(said.strip().splitlines()) == len(objects)


def test_the_operators_pod_is_allowed_where_security_is_restricted(kwok: Kwok, helm: Helm) -> None:
    namespace = kwok.plane.namespace(enforce="restricted")
    objects = helm.template(EVERYTHING, namespace=namespace)
    (deployment,) = of_kind(objects, "Deployment")
    (hook,) = of_kind(objects, "Pod")
    for account in (ACCOUNT, f"{ACCOUNT}-test"):
        kwok.plane.service_account(namespace, account)
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": namespace}}
    for found in (pod | {"spec": template["spec"]}, hook):
        kwok.plane.admin.create(found, dryRun="All")
    kwok.plane.admin.delete(f"/api/v1/namespaces/{namespace}")


def single(space: Space) -> bool:
    made = space.made("digits")
    return not made["poddisruptionbudgets"] and len(made["configmaps"]) == len(made["pods"]) == 1


def granted(objects: list[Object]) -> set[tuple[str, str]]:
    """(verb, resource) of the operator's roles."""
    rules = [rule for o in objects if o["kind"] in ("Role", "ClusterRole") for rule in o["rules"]]
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_its_role_is_enough_and_no_more(kwok: Kwok, installer: Helm, nodes: list[str], namespace: str) -> None:
    """An ensemble's whole life, by the audit log."""
    plane, values = kwok.plane, {"settings": {"debounceSeconds": 0.05, "resyncSeconds": 5}}
    release = plane.namespace()
    installer.install("ens", release, values)
    user, mark = f"system:serviceaccount:{release}:{ACCOUNT}", plane.mark()
    space = Space(plane, namespace)
    space.profiles("a", "b")
    with started(kwok, installer, release, values) as operator:
        space.apply("digits", replicas=2, devices={"kinds": ["GPU"], "max": 1})
        space.wait("digits")
        space.apply("digits", replicas=1, devices={"kinds": ["GPU"], "max": 1})
        wait_for(lambda: single(space), "one copy, and no budget")
        before = space.made("digits")
        space.apply("digits", {"a": 2.0, "b": 1.0}, replicas=1, devices={"kinds": ["GPU"], "max": 1})
        wait_for(
            lambda: single(space) and space.made("digits") != before, "the new revision, and nothing left of the old"
        )
        space.apply("unmeasured", {"new": 1.0})
        wait_for(lambda: any("profile" in p["metadata"]["name"] for p in space.items("pods")), "a profiling pod")
        space.clear()
        operator.idle()
    asked = plane.requests(user, since=mark)
    assert not [request for request in asked if request.code == 403]
    used = {(request.verb, request.resource) for request in asked if "/" not in request.resource[:1]}
    role = granted([o for o in installer.template(values, namespace=release) if o["metadata"]["name"] == ACCOUNT])
    discovery = {("get", resource) for verb, resource in used if verb == "get"}
    assert used - discovery <= role
    # Server-side apply needs `create` beside `patch`, which the log shows as one. The rest is rare in the life of an
    # ensemble: a profiling pod that succeeded, GPUs that are asked for one by one, an ensemble that is suspended, an
    # edition that is not gone back to.
    rare = {("create", r) for _, r in role} | {
        ("patch", "modelprofiles"),
        ("patch", "resourceclaimtemplates"),
        ("delete", "resourceclaimtemplates"),
        ("delete", "services"),
        ("delete", "controllerrevisions"),
        ("patch", "networkpolicies"),
        ("delete", "networkpolicies"),
    }
    assert role - used <= rare
    installer.uninstall("ens", release)


def test_a_namespaced_operator_lives_in_its_namespace(kwok: Kwok, installer: Helm, nodes: list[str]) -> None:
    plane = kwok.plane
    release = plane.namespace()
    gpus = {"type": "NVIDIA-A100-SXM4-40GB", "count": 4, "memoryMib": 40_960}
    stated = [{"name": nodes[0], "gpus": gpus, "cores": 8, "memoryMib": 32_768}]
    values = {"scope": "Namespace", "inventory": {"static": stated}, "settings": {"debounceSeconds": 0.05}}
    installer.install("ens", release, values)
    user, mark = f"system:serviceaccount:{release}:{ACCOUNT}", plane.mark()
    space = Space(plane, release)
    space.profiles("a", "b")
    with started(kwok, installer, release, values):
        space.apply("digits")
        space.wait("digits")
        space.clear()
    asked = plane.requests(user, since=mark)
    assert not [request for request in asked if request.code == 403]
    assert {request.namespace for request in asked if request.resource.startswith("pods")} == {release}
    installer.uninstall("ens", release)


def test_an_upgrade_keeps_every_object_and_every_pod(
    kwok: Kwok, installer: Helm, nodes: list[str], namespace: str, tmp_path: Path
) -> None:
    plane, values = kwok.plane, {"settings": {"debounceSeconds": 0.05}}
    release = plane.namespace()
    older = tmp_path / "ensembles"
    shutil.copytree(CHART, older)
    chart = yaml.safe_load((older / "Chart.yaml").read_text())
    (older / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "0.0.1", "appVersion": "0.0.1"}))
    installer.install("ens", release, values, chart=older)
    objects = kept(installer.template(values, namespace=release))
    before = uids(kwok, objects)
    space = Space(plane, namespace)
    space.profiles("a", "b")
    with started(kwok, installer, release, values):
        space.apply("digits")
        space.wait("digits")
    pods = {pod["metadata"]["uid"] for pod in space.pods("digits")}
    installer.install("ens", release, values)
    assert uids(kwok, objects) == before
    newer = values | {"runtime": {"onnx": {"tag": "newer"}, "full": {"tag": "newer"}}}
    installer.install("ens", release, newer)
    with started(kwok, installer, release, newer) as operator:
        operator.idle()
        assert {pod["metadata"]["uid"] for pod in space.pods("digits")} == pods
        space.clear()
    installer.uninstall("ens", release)


def test_uninstalling_leaves_the_crds_and_says_so(kwok: Kwok, installer: Helm, namespace: str) -> None:
    plane = kwok.plane
    release = plane.namespace()
    said = installer.install("ens", release)
    assert "kubectl delete crd inferenceensembles.ensembles.dev modelprofiles.ensembles.dev" in said
    plane.admin.apply(ensemble("staying", namespace, suspend=True))
    said = installer.uninstall("ens", release)
    assert "inferenceensembles.ensembles.dev" in said
    assert "staying" in plane.kubectl("get", "ie", namespace=namespace)
    with pytest.raises(subprocess.CalledProcessError):
        plane.kubectl("get", "deployment", "ens-ensembles", namespace=release)


def test_users_may_what_the_aggregated_roles_say(kwok: Kwok, installer: Helm, namespace: str) -> None:
    plane = kwok.plane
    release = plane.namespace()
    installer.install("ens", release)

    def may(role: str, verb: str, resource: str) -> bool:
        rules = plane.admin.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")["rules"]
        return any(verb in r["verbs"] and resource in r.get("resources", ()) for r in rules)

    wait_for(lambda: may("view", "list", "inferenceensembles"), "the role view to know ensembles")
    wait_for(lambda: may("edit", "create", "inferenceensembles"), "the role edit to know ensembles")
    assert not may("view", "create", "inferenceensembles") and not may("view", "patch", "inferenceensembles")
    assert may("edit", "patch", "inferenceensembles/scale")
    assert not may("admin", "patch", "inferenceensembles/status")  # the operator's alone
    installer.uninstall("ens", release)
