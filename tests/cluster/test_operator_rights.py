"""The operator with only the chart's rights, in a whole cluster and in one namespace; and with a bad connection."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.kwok import Kwok, gpu_node
from beds.operating import A100, Operator, Space
from beds.processes import wait_for
from beds.unreliable import Unreliable

pytestmark = pytest.mark.timeout(300)

RULES = Path(__file__).parents[2] / "charts" / "ensembles" / "templates" / "_rules.tpl"


def rules(name: str) -> list[dict[str, Any]]:
    """A list of rules of the chart; they are plain YAML within their definition."""
    text = re.search(rf'define "{re.escape(name)}" -}}}}\n(.*?){{{{- end', RULES.read_text(), re.DOTALL)
    assert text is not None
    found: list[dict[str, Any]] = yaml.safe_load(text[1])
    return found


def allow(kwok: Kwok, namespace: str, *, cluster: bool) -> str:
    """A ServiceAccount with the chart's rights; its token."""
    token = kwok.plane.service_account(namespace, "ensemble-operator")
    kind, where = ("ClusterRole", {}) if cluster else ("Role", {"namespace": namespace})
    given = rules("ensembles.rules.objects") + (rules("ensembles.rules.cluster") if cluster else [])
    group = "rbac.authorization.k8s.io"
    metadata = {"name": f"operator-{namespace}", **where}
    kwok.plane.admin.apply({"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": given})
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": f"{kind}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": kind, "name": metadata["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "ensemble-operator", "namespace": namespace}],
    }
    kwok.plane.admin.apply(binding)
    return token


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    names = kwok.add(gpu_node("rights", count=4))
    yield names
    kwok.remove(names)


@pytest.fixture
def space(kwok: Kwok, nodes: list[str], namespace: str) -> Iterator[Space]:
    found = Space(kwok.plane, namespace)
    found.profiles("a", "b")
    yield found
    found.clear()


def live(space: Space, operator: Operator) -> None:
    """An ensemble's life: made, changed, scaled, suspended, deleted."""
    space.apply("digits", {"a": 1.0, "b": 1.0})
    space.wait("digits")
    space.apply("digits", {"a": 1.0, "b": 1.0}, combination={"rule": "Mean"}, replicas=2)
    wait_for(lambda: space.status("digits").get("readyReplicas") == 2, "two copies")
    space.apply("digits", {"a": 1.0, "b": 1.0}, suspend=True)
    space.wait("digits", "Suspended")
    wait_for(lambda: not space.items("pods"), "no pod")
    space.delete("digits")
    operator.idle()


def requests_of(space: Space, mark: int) -> list:
    return space.plane.requests(f"system:serviceaccount:{space.namespace}:ensemble-operator", mark)


def test_with_the_charts_cluster_role_nothing_is_forbidden(space: Space, kwok: Kwok) -> None:
    token, mark = allow(kwok, space.namespace, cluster=True), space.plane.mark()
    with Operator(space.plane, token=token) as operator:
        live(space, operator)

    made = requests_of(space, mark)
    assert len(made) > 20 and not [r for r in made if r.code == 403]


def test_in_one_namespace_it_lives_on_a_stated_inventory(space: Space, kwok: Kwok) -> None:
    token, mark = allow(kwok, space.namespace, cluster=False), space.plane.mark()
    gpus = {"type": A100, "count": 4, "memoryMib": 40960}
    stated = [{"name": "rights", "gpus": gpus, "cores": 32, "memoryMib": 131072}]
    part_of = {"app.kubernetes.io/part-of": "ensembles"}
    inventory = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "inventory", "namespace": space.namespace, "labels": part_of},
        "data": {"nodes.yaml": json.dumps(stated)},
    }
    space.plane.admin.apply(inventory)
    with Operator(space.plane, token=token, namespace=space.namespace, static_inventory="inventory") as operator:
        live(space, operator)

    made = requests_of(space, mark)
    assert len(made) > 20 and not [r for r in made if r.code == 403]
    assert {r.namespace for r in made if r.resource == "pods"} == {space.namespace}


def test_refusals_and_broken_watches_delay_and_break_nothing(space: Space, kwok: Kwok) -> None:
    with (
        Unreliable(space.plane, share=0.3, watch_seconds=1.5) as way,
        Operator(space.plane, url=way.url, resync_seconds=15) as operator,
    ):
        live(space, operator)

        assert {409, 429, 500} <= way.refused.keys() and way.cut > 5
        assert operator.program.running()
