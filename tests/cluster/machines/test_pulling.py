"""Images and models that cannot be had: the condition says so, and all else goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from beds import enclosure
from beds.images import RUNTIME
from beds.machines import Machines
from beds.processes import wait_for
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
SECONDS = 30.0


def on_node(served: Callable[..., Served], node: str, name: str, **spec: Any) -> Served:
    """An ensemble of one member on a node."""
    placement = {"nodeSelector": {"kubernetes.io/hostname": node}}
    return served(name, 1, devices={"kinds": ["CPU"], "max": 1}, placement=placement, **spec)


def with_model(ensemble: Served, **changed: str) -> list[dict[str, Any]]:
    """Its members, with another model."""
    (member,) = ensemble.manifest["spec"]["members"]
    return [member | {"model": member["model"] | changed}]


def told(ensemble: Served, condition: str, words: str) -> tuple[str, str]:
    """Reason and message of a condition as soon as it says these words."""

    def said() -> tuple[str, str, str]:
        return ensemble.space.condition(ensemble.name, condition)

    try:
        wait_for(lambda: words in said()[2], f"{condition}: {words}", SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it says {said()}") from None
    return said()[1:]


def test_an_image_that_cannot_be_pulled_is_told_at_once(
    machines: Machines, serving: Served, served: Callable[..., Served]
) -> None:
    node = machines.nodes["node-2"]
    node.forget(RUNTIME)
    with serving.load() as load:
        one = on_node(served, node.name, "one")
        one.apply()
        reason, message = told(one, "Degraded", RUNTIME)
        (pod,) = one.pods()
        assert reason in ("ErrImagePull", "ImagePullBackOff") and message.startswith(f"pod {pod['metadata']['name']}: ")
        load.more()
        for archive in enclosure.archives():
            node.load(archive)
        one.wait()
    assert not load.failures, load.summary()


def test_a_model_that_cannot_be_pulled_is_told_at_once(
    machines: Machines, serving: Served, served: Callable[..., Served]
) -> None:
    """One that is known, and gone from where it was; and one that is not known yet, and is another than was pinned."""
    assert {"node-2", "node-3"} < machines.nodes.keys()
    with serving.load() as load:
        gone, other = on_node(served, "node-2", "gone"), on_node(served, "node-3", "other")
        right = {one.name: with_model(one) for one in (gone, other)}
        gone.apply(members=with_model(gone, uri=f"{gone.cluster.models}/absent.onnx"))
        other.apply(members=with_model(other, sha256="0" * 64))
        reason, message = told(gone, "Degraded", "404")
        (pod,) = gone.pods()
        assert message.startswith(f"pod {pod['metadata']['name']}: {reason}: container fetch-0 ended with 66: ")
        assert "absent.onnx" in message
        reason, message = told(other, "Profiled", "0" * 64)
        assert reason in ("Error", "ProfilingFailed") and message.startswith("pod profile-")
        load.more()
        for one in (gone, other):
            one.apply(members=right[one.name])
        for one in (gone, other):
            one.wait()
    assert not load.failures, load.summary()
