"""The project's images hold what they should, nothing that they should not, and start as whom they should."""

from __future__ import annotations

import json

import pytest

from beds import images
from beds.client import Manifest
from beds.machines import Machines
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(600)
LOOK = """
import importlib.util, json, os, sys
found = {name: importlib.util.find_spec(name) is not None for name in sys.argv[1:]}
print(json.dumps({"uid": os.getuid(), "python": sys.version_info[:2], "found": found}))
"""
PACKAGES = ("ensemble_runtime", "kopf", "kubernetes", "scipy", "onnxruntime", "s3fs", "torch", "pip", "setuptools")


def ended(machines: Machines, namespace: str, name: str, image: str, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a container, as restricted as those of ensembles."""
    container = {
        "name": "it",
        "image": image,
        "imagePullPolicy": "Never",
        **({"command": command} if command else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }
    plane, path = machines.plane, f"/api/v1/namespaces/{namespace}/pods/{name}"
    plane.admin.create(manifest)
    wait_for(lambda: plane.admin.get(path)["status"]["phase"] in ("Succeeded", "Failed"), f"the end of {name}", 120)
    (status,) = plane.admin.get(path)["status"]["containerStatuses"]
    return status["state"]["terminated"]["exitCode"], plane.kubectl("logs", name, namespace=namespace)


@pytest.mark.parametrize(
    ("image", "held"),
    [
        (images.OPERATOR, {"ensemble_runtime", "kopf", "kubernetes", "scipy"}),
        (images.RUNTIME, {"ensemble_runtime", "onnxruntime", "s3fs"}),
    ],
    ids=["operator", "runtime"],
)
def test_an_image_holds_what_it_needs_and_no_more(machines: Machines, room: str, image: str, held: set[str]) -> None:
    code, said = ended(machines, room, "look", image, ["python", "-c", LOOK, *PACKAGES])
    assert code == 0, said
    seen = json.loads(said)
    assert seen["uid"] == 65532 and seen["python"] == [3, 11]
    assert {name for name, there in seen["found"].items() if there} == held


def test_the_operator_says_which_settings_it_lacks(machines: Machines, room: str) -> None:
    code, said = ended(machines, room, "operator", images.OPERATOR, [])
    assert code == 78
    assert "ENSEMBLES_RUNTIME_IMAGE_ONNX: missing" in said and "ENSEMBLES_RUNTIME_IMAGE_FULL: missing" in said


def test_the_operators_image_plans_by_hand_too(machines: Machines, room: str) -> None:
    code, said = ended(machines, room, "cli", images.OPERATOR, ["ensemblectl", "plan", "--help"])
    assert code == 0 and "ensemblectl plan" in said


def test_the_runtime_sees_cores(machines: Machines, room: str) -> None:
    code, said = ended(machines, room, "devices", images.RUNTIME, ["ensemble-runtime", "devices"])
    assert code == 0, said
    assert {device["kind"] for device in json.loads(said)} == {"CPU"}
