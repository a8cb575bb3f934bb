"""`ensemblectl status|inventory|explain` and `kubectl ensemble`, run as a user runs them, beside a real operator."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beds.binaries import provide
from beds.kwok import Kwok, gpu_node, resource_slice
from beds.operating import Space
from beds.processes import wait_for

pytestmark = pytest.mark.timeout(300)
NODES = (gpu_node("look-a", count=2), gpu_node("look-b", count=1))

Run = Callable[..., subprocess.CompletedProcess[str]]
LARGE_MIB = 60_000


@pytest.fixture
def look(space: Space) -> Run:
    """Runs a command line's module against the bed, in the namespace of the test."""
    return looking(space.plane.kubeconfig(namespace=space.namespace))


def looking(kubeconfig: Path) -> Run:
    def run(*arguments: str, module: str = "main") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"ensemble_operator.cli.{module}", *arguments]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "COLUMNS": "250"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)

    return run


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_status_shows_what_serves(space: Space, look: Run) -> None:
    space.apply("digits")
    space.wait("digits")
    shown = document(look("status", "digits", "-o", "json"))
    assert shown == {
        "namespace": space.namespace,
        "name": "digits",
        "stale": False,
        "status": space.status("digits"),
    }
    page = look("status", "digits").stdout
    for word in ("Ready", "look-a", "gpu0", "a x8", f"http://digits.{space.namespace}.svc:8000", "rows/s predicted"):
        assert word in page
    (row,) = [line for line in look("status").stdout.splitlines() if line.strip().startswith("digits")]
    assert "True" in row and "2/2" in row and "1/1" in row


def test_inventory_names_devices_holders_and_what_is_not_offered(space: Space, kwok: Kwok, look: Run) -> None:
    space.apply("digits")
    space.wait("digits")
    kwok.cordon("look-b")
    try:
        found = {node["name"]: node for node in document(look("inventory", "-o", "json"))}
    finally:
        kwok.cordon("look-b", on=False)
    assert {d["heldBy"] for d in found["look-a"]["devices"]} == {f"{space.namespace}/digits"}
    assert found["look-a"]["source"] == "Labels"
    assert (found["look-b"]["excluded"], [d["heldBy"] for d in found["look-b"]["devices"]]) == ("Cordoned", [None])
    page = look("inventory").stdout
    assert f"{space.namespace}/digits (2)" in page


def test_a_node_with_a_driver_beside_a_plugin_is_noted(space: Space, kwok: Kwok, look: Run) -> None:
    made = kwok.plane.admin.create(resource_slice("look-b"))
    try:
        assert "look-b: both a DRA driver and a device plugin" in look("inventory").stdout
    finally:
        kwok.plane.admin.delete(f"/apis/resource.k8s.io/v1/resourceslices/{made['metadata']['name']}")


def test_explain_gives_the_plan_that_runs_and_its_reasons(space: Space, look: Run) -> None:
    space.apply("digits")
    space.wait("digits")
    shown = document(look("explain", "digits", "-o", "json"))
    assert shown["reasons"] == []
    (copy,) = shown["copies"]
    assert copy["digest"][:8] in space.status("digits")["plan"] or space.status("digits")["plan"] in copy["digest"]
    assert copy["rate"] == pytest.approx(space.status("digits")["rate"], rel=1e-3)
    assert {cell["member"] for cell in copy["explanation"]["cells"]} == {"a", "b"}
    page = look("explain", "digits").stdout
    assert f"Plan {copy['digest']} of digits" in page
    assert "one more NVIDIA-A100-SXM4-40GB" in page


def test_explain_says_why_one_waits(space: Space, look: Run) -> None:
    space.profiles("huge", memory_mib=LARGE_MIB)
    space.apply("giant", {"huge": 1.0})
    wait_for(lambda: space.condition("giant", "Planned")[0] == "False", "it is known not to fit")
    reasons = " ".join(document(look("explain", "giant", "-o", "json"))["reasons"])
    assert "Planned is False" in reasons
    assert "needs 1 device of 58.6 GiB, the best node has" in reasons
    assert "needs 1 device of 58.6 GiB" in look("status", "giant").stdout


def test_explain_gives_a_plan_that_is_only_a_plan(space: Space, look: Run) -> None:
    space.apply("idea", mode="PlanOnly")
    wait_for(lambda: space.status("idea").get("matrix"), "there is a plan")
    (copy,) = document(look("explain", "idea", "-o", "json"))["copies"]
    assert copy["rate"] == pytest.approx(space.status("idea")["rate"], rel=1e-3)


def test_kubectl_finds_the_plugin(space: Space, tmp_path: Path) -> None:
    plugin = tmp_path / "kubectl-ensemble"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m ensemble_operator.cli.kubectl "$@"\n')
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(space.plane.kubeconfig(namespace=space.namespace)),
        "KUBECACHEDIR": str(tmp_path / "cache"),
    }
    command = [str(provide(("kubectl",), print)["kubectl"]), "ensemble", "status", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert document(done) == []


def test_what_goes_wrong_is_one_line_and_an_exit_code(space: Space, look: Run, tmp_path: Path) -> None:
    nobody = space.plane.service_account(space.namespace, "nobody")
    cases = [
        (look("status", "absent"), 76, "absent"),
        (look("explain", "absent", module="kubectl"), 76, "kubectl ensemble: the cluster says 404"),
        (look("status", "--context", "absent"), 78, "absent"),
        (looking(space.plane.kubeconfig(nobody))("inventory"), 76, "403"),
        (looking(space.plane.kubeconfig(url="https://127.0.0.1:1"))("status"), 74, "127.0.0.1:1"),
        (looking(tmp_path / "none")("status"), 78, "KUBECONFIG"),
    ]
    for done, code, words in cases:
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
