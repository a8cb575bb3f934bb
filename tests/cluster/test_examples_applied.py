"""Every manifest that the examples and the docs show is applied to a real API server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]


def shown() -> Iterator[Any]:
    for path in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml")):
        yield pytest.param(path.read_text(), id=path.stem)
    for page in sorted((ROOT / "docs").glob("*.md")):
        for i, text in enumerate(re.findall(r"```yaml\n(apiVersion:.*?)```", page.read_text(), flags=re.DOTALL)):
            yield pytest.param(text, id=f"{page.stem}-{i}")


@pytest.mark.parametrize("text", list(shown()))
def test_it_is_applied(control_plane: ControlPlane, text: str) -> None:
    objects = list(yaml.safe_load_all(text))
    command = ("apply", "--server-side", "--validate=strict", "-f", "-")
    if "file://./" in text:  # for `ensemblectl up` alone
        with pytest.raises(subprocess.CalledProcessError) as refused:
            control_plane.kubectl(*command, manifests=objects)
        assert "relative to a manifest on a disk" in refused.value.stderr
        return
    said = control_plane.kubectl(*command, manifests=objects)  # nobody acts on it: no operator runs here
    assert said.count("serverside-applied") == len(objects)
    control_plane.kubectl("delete", "--wait=false", "-f", "-", manifests=objects)
