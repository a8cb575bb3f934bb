"""The project's chart through real Helm."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[3] / "charts" / "ensembles"

Object = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is its own."""


class Helm:
    """Helm with the chart; a kubeconfig is needed for whatever talks to a cluster."""

    def __init__(self, program: Path, folder: Path, kubeconfig: Path | None = None) -> None:
        """`folder` holds Helm's caches and the values given to it."""
        self._program, self._folder, self._kubeconfig = program, folder, kubeconfig

    def lint(self, values: Mapping[str, Any] | None = None) -> str:
        """What `helm lint --strict` says.

        Raises:
            HelmError: It finds fault.
        """
        return self("lint", str(CHART), "--strict", *self._values(values))

    def template(
        self, values: Mapping[str, Any] | None = None, *, release: str = "ens", namespace: str = "ensembles"
    ) -> list[Object]:
        """The objects of a release, hooks included.

        Raises:
            HelmError: The values are refused.
        """
        text = self("template", release, str(CHART), "--namespace", namespace, *self._values(values))
        return [found for found in yaml.safe_load_all(text) if found]

    def install(
        self, release: str, namespace: str, values: Mapping[str, Any] | None = None, *, chart: Path = CHART
    ) -> str:
        """Install or upgrade, taking over CRDs that are there already; returns what Helm prints.

        Raises:
            HelmError: The values or the cluster refuse.
        """
        adopt = ("--take-ownership", "--force-conflicts")
        where = ("--namespace", namespace)
        return self("upgrade", "--install", release, str(chart), *where, *adopt, *self._values(values))

    def uninstall(self, release: str, namespace: str) -> str:
        """Uninstall; returns what Helm prints."""
        return self("uninstall", release, "--namespace", namespace)

    def __call__(self, *arguments: str) -> str:
        """Run Helm.

        Raises:
            HelmError: It fails.
        """
        places = {name: str(self._folder) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
        target = ["--kubeconfig", str(self._kubeconfig)] if self._kubeconfig else []
        result = subprocess.run(
            [str(self._program), *arguments, *target], env=places, capture_output=True, text=True, timeout=120
        )
        if result.returncode != 0:
            raise HelmError(result.stdout + result.stderr)
        return result.stdout

    def _values(self, values: Mapping[str, Any] | None) -> list[str]:
        if not values:
            return []
        file = self._folder / f"values-{len(list(self._folder.glob('values-*')))}.yaml"
        file.write_text(yaml.safe_dump(dict(values)))
        return ["--values", str(file)]
