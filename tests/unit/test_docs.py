"""The documentation says what the code does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_operator.api.manifest import load_manifest, load_profiles
from ensemble_operator.cli import errors as cli_errors
from ensemble_operator.controller.settings import SettingsError
from ensemble_runtime import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md")])


def _paths(schema: dict[str, Any]) -> Iterator[str]:
    for name, value in schema.get("properties", {}).items():
        inner = value.get("items", value)
        below = list(_paths(inner))
        yield from ([f"{name}.{path}" for path in below] or [name])


@pytest.mark.parametrize("plural", ["inferenceensembles", "modelprofiles"])
def test_the_manifest_page_names_every_field(plural: str) -> None:
    crd = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    page = (DOCS / "manifest.md").read_text()
    mentioned = {word for span in re.findall(r"`([^`\n]+)`", page) for word in re.split(r"\W+", span)}
    assert not {path for path in _paths(spec) if path.rpartition(".")[2] not in mentioned}


def test_the_manifests_on_the_manifest_page_are_right() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "manifest.md").read_text(), flags=re.DOTALL)
    ensembles = [text for text in examples if "kind: InferenceEnsemble" in text]
    profiles = [text for text in examples if "kind: ModelProfile" in text]
    assert len(ensembles) >= 2 and profiles
    for text in ensembles:
        load_manifest(text, folder="/models")
    for text in profiles:
        load_profiles(text)


def test_the_example_manifest_is_right() -> None:
    text = (ROOT / "examples" / "digits" / "ensemble.yaml").read_text()
    assert len(load_manifest(text, folder="/models").ensemble.spec.members) == 5


def test_every_exit_code_is_explained() -> None:
    page = (DOCS / "operations.md").read_text()
    explained = {(int(code), name) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, flags=re.MULTILINE)}
    classes = [
        *vars(errors).values(),
        cli_errors.ServerUnreachableError,
        cli_errors.ServerRefusedError,
        cli_errors.ClusterConfigError,
        SettingsError,
    ]
    assert explained == {(cls.exit_code, cls.__name__) for cls in classes if isinstance(cls, type)}


def test_every_metric_is_explained() -> None:
    page = (DOCS / "operations.md").read_text()
    source = (ROOT / "runtime" / "ensemble_runtime" / "gateway" / "exposition.py").read_text()
    names = set(re.findall(r'"(ensemble_\w+[a-z])"', source)) | {
        f"ensemble_inference_{name}" for name in re.findall(r'(?:_counter|_family)\(\s*"(\w+)"', source)
    }
    assert len(names) > 15
    assert not {name for name in names if name not in page}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]
