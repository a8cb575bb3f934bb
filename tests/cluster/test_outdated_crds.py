"""Fields that the API server would drop are told: an upgrade may bring a new operator and leave the old CRDs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.controlplane import ControlPlane
from beds.processes import wait_for
from ensemble_operator.controller.kube import connected
from ensemble_operator.controller.outdated import missing_fields

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceensembles.ensembles.dev"
CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture
def missing(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[str, ...]]]:
    """What an operator finds now; the CRDs are as they should be afterwards."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig()))

    async def look() -> tuple[str, ...]:
        async with connected() as kube:
            return await missing_fields(kube)

    yield lambda: asyncio.run(look())
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    wait_for(lambda: not asyncio.run(look()), "the CRDs as they should be")


def test_fields_that_older_crds_lack_are_named(
    control_plane: ControlPlane, missing: Callable[[], tuple[str, ...]]
) -> None:
    wait_for(lambda: missing() == (), "the API server to know every field")
    crd = control_plane.admin.get(CRD)
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["lastFailure"], status["matrix"]["items"]["properties"]["cells"]["items"]["properties"]["batchSize"]
    # As a chart of an older version would: its fields replace all that were there.
    control_plane.kubectl("replace", "-f", "-", manifests=[crd])
    lacking = {"InferenceEnsemble.status.lastFailure", "InferenceEnsemble.status.matrix[].cells[].batchSize"}
    wait_for(lambda: set(missing()) == lacking, "both fields to be missed")
