"""Dashboards, alerts and docs speak of metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ensemble_operator.controller.metrics import Metrics

ROOT = Path(__file__).parents[2]
FILES = ROOT / "charts" / "ensembles" / "files"
METRIC = re.compile(r"\b(ensembles?_[a-z_]+[a-z])\b(?!\s*=)")


def of_the_operator() -> set[str]:
    families = [family for family in Metrics().registry.collect() if family.name.startswith("ensembles_")]
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def of_the_runtime() -> set[str]:
    """As listed in the docs, which another test holds against the code."""
    return set(re.findall(r"`(ensemble_\w+)`", (ROOT / "docs" / "operations.md").read_text()))


def known() -> set[str]:
    names = of_the_operator() | of_the_runtime()
    return names | {f"{name}_{suffix}" for name in names if name.endswith("_seconds") for suffix in ("bucket", "count")}


def expressions() -> dict[str, str]:
    """Every query, by where it stands."""
    alerts = yaml.safe_load((FILES / "alerts.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    for path in sorted((FILES / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            found |= {f"{path.stem}/{panel['title']}/{t['refId']}": t["expr"] for t in panel["targets"]}
    return found


@pytest.mark.parametrize(("place", "expression"), sorted(expressions().items()))
def test_queries_ask_for_metrics_that_exist(place: str, expression: str) -> None:
    asked = set(METRIC.findall(expression))
    assert asked, place
    assert asked <= known()


def test_the_autoscaler_asks_for_a_metric_that_exists() -> None:
    example = (ROOT / "examples" / "kubernetes" / "autoscaling.yaml").read_text()
    scaler = yaml.safe_load(example)
    names = {one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"]}
    assert names <= of_the_runtime() and names <= set(METRIC.findall(example.partition("apiVersion")[0]))


def test_every_metric_of_the_operator_is_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert of_the_operator() == set(re.findall(r"^\| `(ensembles_operator_\w+)`", page, flags=re.MULTILINE))


def test_every_alert_has_a_remedy() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    alerts = yaml.safe_load((FILES / "alerts.yaml").read_text())
    names = {rule["alert"] for group in alerts["groups"] for rule in group["rules"]}
    assert names == set(re.findall(r"^\| `(Ensemble\w+)` \|", page, flags=re.MULTILINE))
