"""Every manifest that the docs and the examples show is right, and the generated reference is up to date."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.cli import reference

ROOT = Path(__file__).parents[2]
OURS = {"InferenceEnsemble": InferenceEnsemble, "ModelProfile": ModelProfile}


def shown() -> Iterator[Any]:
    """Objects of ours in examples/kubernetes and in the docs' YAML."""
    texts = {path.stem: path.read_text() for path in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))}
    for page in sorted((ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"```yaml\n(apiVersion:.*?)```", page.read_text(), flags=re.DOTALL)
        texts |= {f"{page.stem}-{i}": text for i, text in enumerate(blocks)}
    for name, text in texts.items():
        for document in yaml.safe_load_all(text):
            if document["kind"] in OURS:
                yield pytest.param(document, id=f"{name}-{document['metadata']['name']}")


@pytest.mark.parametrize("document", list(shown()))
def test_what_is_shown_is_right(document: dict[str, Any]) -> None:
    OURS[document["kind"]].model_validate_json(json.dumps(document))


def test_every_example_is_listed() -> None:
    folder = ROOT / "examples" / "kubernetes"
    listed = set(re.findall(r"\]\((\S+\.yaml)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.yaml")}


def test_the_api_reference_is_that_of_the_models() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == reference.render(), "run `make crds`"
