"""The chart as Helm renders it, without a cluster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from beds.helm import CHART, Helm, HelmError, Object
from ensemble_operator.controller.settings import Settings, variable
from ensemble_operator.inventory.static import static_inventory

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True, "annotations": {"folder": "Ensembles"}},
    },
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}]},
    "podDisruptionBudget": {"enabled": True},
    "global": {"imageRegistry": "registry.example.com", "imagePullSecrets": ["pull"]},
    "image": {"digest": "sha256:" + "0" * 64},
    "modelCache": {"claimName": "models", "maxMib": 51_200},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "yes"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}, "data": {"of": "{{ .Release.Name }}"}}
    ],
}
STATED = [
    {"name": "node-1", "gpus": {"type": "NVIDIA-L4", "count": 2, "memoryMib": 23_034}, "cores": 8, "memoryMib": 16}
]


def documented() -> Iterator[dict[str, Any]]:
    """Every set of values that the docs show."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for text in re.findall(r"```yaml\n# values\.yaml.*?\n(.*?)```", page.read_text(), flags=re.DOTALL):
            yield pytest.param(yaml.safe_load(text), id=f"{page.stem}-{len(text)}")


VALUES = [
    pytest.param({}, id="default"),
    pytest.param(EVERYTHING, id="everything"),
    pytest.param({"scope": "Namespace", "inventory": {"static": STATED}}, id="namespace"),
    *documented(),
]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


@pytest.mark.parametrize("values", VALUES)
def test_values_of_the_docs_render(helm: Helm, values: dict[str, Any]) -> None:
    helm.lint(values)
    objects = helm.template(values)
    assert len(of_kind(objects, "Deployment")) == 1
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))


def test_the_docs_show_values() -> None:
    assert len(list(documented())) >= 4


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 2}, "replicas"),
        ({"image": {"tga": "1"}}, "tga"),
        ({"settings": {"resyncSeconds": 1}}, "resyncSeconds"),
        ({"settings": {"logLevel": "info"}}, "logLevel"),
        ({"scope": "cluster"}, "scope"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"metrics": {"serviceMonitor": {"interval": "soon"}}}, "interval"),
        ({"inventory": {"static": [{"nam": "x"}]}}, "nam"),
        ({"scope": "Namespace"}, "inventory.static"),
        ({"inventory": {"static": STATED, "existingConfigMap": "mine"}}, "exclude each other"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=re.escape(named)):
        helm.template(values)


def test_every_default_is_in_the_schema_and_no_object_is_open() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert set(values) == set(schema["properties"]), path
        assert schema["additionalProperties"] is False, path
        for name, below in schema["properties"].items():
            if "properties" in below:
                compare(values[name], below, f"{path}.{name}")

    compare(values, schema, "values")


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"scope": "Namespace", "inventory": {"static": STATED}}])
def test_the_environment_is_the_settings(helm: Helm, values: dict[str, Any]) -> None:
    (deployment,) = of_kind(helm.template(values), "Deployment")
    env = {e["name"]: e["value"] for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    ours = {name: value for name, value in env.items() if name.startswith("ENSEMBLES_")}
    assert set(ours) == {variable(name) for name in Settings.model_fields}
    settings = Settings.from_environment(ours)
    assert settings.namespace == ("ensembles" if values.get("scope") == "Namespace" else "")
    if not values:
        defaults = Settings(runtime_image_onnx="x", runtime_image_full="x").model_dump()
        differing = {name for name, value in settings.model_dump().items() if value != defaults[name]}
        assert differing == {"runtime_image_onnx", "runtime_image_full", "static_namespace"}


def test_images_by_registry_tag_and_digest(helm: Helm) -> None:
    (deployment,) = of_kind(helm.template(EVERYTHING), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    env = {e["name"]: e["value"] for e in container["env"]}
    assert container["image"] == f"registry.example.com/ensemble-operator@sha256:{'0' * 64}"
    assert env["ENSEMBLES_RUNTIME_IMAGE_ONNX"] == f"registry.example.com/ensemble-runtime:{version}-onnx"
    assert env["ENSEMBLES_RUNTIME_IMAGE_FULL"] == f"registry.example.com/ensemble-runtime:{version}-full"


def test_a_lost_node_is_left_within_half_a_minute(helm: Helm) -> None:
    (deployment,) = of_kind(helm.template(), "Deployment")
    tolerated = deployment["spec"]["template"]["spec"]["tolerations"]
    assert {t["key"].rpartition("/")[2]: t["tolerationSeconds"] for t in tolerated} == {
        "unreachable": 30,
        "not-ready": 30,
    }


def test_the_crds_are_those_of_the_models(helm: Helm) -> None:
    for source in sorted((ROOT / "crds").glob("*.yaml")):
        assert (CHART / "files" / "crds" / source.name).read_text() == source.read_text(), "run `make crds`"
    rendered = of_kind(helm.template(), "CustomResourceDefinition")
    for crd in rendered:
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        del crd["metadata"]["labels"]
    by_name = {crd["metadata"]["name"]: crd for crd in rendered}
    sources = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    assert by_name == {crd["metadata"]["name"]: crd for crd in sources}
    loose = of_kind(helm.template({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert len(loose) == 2 and not any("annotations" in crd["metadata"] for crd in loose)
    assert not of_kind(helm.template({"crds": {"install": False}}), "CustomResourceDefinition")


def test_a_namespaced_install_asks_for_nothing_of_the_cluster(helm: Helm) -> None:
    values = {"scope": "Namespace", "inventory": {"static": STATED}, "crds": {"install": False}}
    objects = helm.template(values)
    assert not of_kind(objects, "ClusterRole") and not of_kind(objects, "ClusterRoleBinding")
    assert {o["metadata"]["namespace"] for o in objects} == {"ensembles"}
    (stated,) = (o for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"].endswith("-inventory"))
    assert stated["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ensembles"  # the operator watches only those
    assert set(static_inventory(stated["data"]).nodes) == {"node-1"}


def test_the_alerts_are_what_promtool_accepts(helm: Helm, promtool: Path, tmp_path: Path) -> None:
    (rule,) = of_kind(helm.template(EVERYTHING), "PrometheusRule")
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump(rule["spec"]))
    subprocess.run([promtool, "check", "rules", "--lint=all", "--lint-fatal", rendered], check=True, timeout=60)
    tests = tmp_path / "tests.yaml"
    tests.write_text((Path(__file__).parent / "alerts_test.yaml").read_text())
    subprocess.run([promtool, "test", "rules", tests], check=True, timeout=60)


def test_dashboards_are_whole(helm: Helm) -> None:
    maps = of_kind(helm.template(EVERYTHING), "ConfigMap")
    found = [o for o in maps if "grafana_dashboard" in o["metadata"].get("labels", {})]
    boards = [json.loads(text) for o in found for text in o["data"].values()]
    assert {board["title"] for board in boards} == {"Ensembles", "Ensemble operator"}
    for board in boards:
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells)), "panels overlap"
        assert all(x < 24 for x, _ in cells)
