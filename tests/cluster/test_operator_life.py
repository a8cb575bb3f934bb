"""What an ensemble leaves in the cluster through its life, with the real operator on a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from beds.kwok import Kwok, gpu_node
from beds.operating import Operator, Space

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def nodes(kwok: Kwok) -> Iterator[list[str]]:
    """Two nodes of four GPUs."""
    names = kwok.add(gpu_node("life-a", count=4), gpu_node("life-b", count=4))
    yield names
    kwok.remove(names)


@pytest.fixture(scope="module")
def operator(kwok: Kwok, nodes: list[str]) -> Iterator[Operator]:
    with Operator(kwok.plane) as running:
        yield running


@pytest.fixture
def space(kwok: Kwok, operator: Operator, namespace: str) -> Space:
    found = Space(kwok.plane, namespace)
    found.profiles("a", "b", "c")
    return found


def config(space: Space, name: str) -> dict:
    (found,) = space.items("configmaps", name)
    return json.loads(found["data"]["config.json"])


def test_apply_makes_exactly_the_right_objects(space: Space) -> None:
    space.apply("digits")
    space.wait("digits")

    made = space.made("digits")
    assert len(made["pods"]) == 1 and len(made["configmaps"]) == 1
    assert made["services"] == ["digits"] and made["poddisruptionbudgets"] == []
    (pod,) = space.pods("digits")
    owner = space.ensemble("digits")["metadata"]
    assert [o["uid"] for o in pod["metadata"]["ownerReferences"]] == [owner["uid"]]
    assert "finalizers" not in owner and "annotations" not in owner
    assert {m["name"] for m in config(space, "digits")["members"]} == {"a", "b"}
    status = space.status("digits")
    assert status["members"] == "2/2" and status["readyReplicas"] == 1
    assert status["plan"] == pod["metadata"]["labels"]["ensembles.dev/plan"]
    assert status["endpoints"] == [f"http://digits.{space.namespace}.svc:8000"]
