"""The images install what pyproject.toml asks for."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(extras: list[str]) -> Iterator[Requirement]:
    """What the project needs with these extras, those of extras within extras included."""
    yield from map(Requirement, PROJECT["dependencies"])
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if canonicalize_name(requirement.name) == PROJECT["name"]:
                yield from required(sorted(requirement.extras))
            else:
                yield requirement


def pins(name: str) -> dict[str, str]:
    """Version by package of a lock file."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    return {canonicalize_name(package): version for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


@pytest.mark.parametrize(
    ("lock", "extras", "replaced"),
    [
        ("operator", ["operator"], set()),
        ("runtime-onnx", ["runtime", "s3"], set()),
        ("runtime-full", ["runtime", "s3", "torch"], {"onnxruntime"}),  # by onnxruntime-gpu, see full.override
    ],
)
def test_a_lock_file_holds_what_the_project_asks_for(lock: str, extras: list[str], replaced: set[str]) -> None:
    found = pins(lock)
    for requirement in required(extras):
        name = canonicalize_name(requirement.name)
        if name not in replaced:
            assert name in found, f"{name} is not in {lock}.lock: run `make lock`"
            assert requirement.specifier.contains(found[name]), f"{lock}.lock: run `make lock`"


@pytest.mark.parametrize(
    ("lock", "absent"), [("operator", "torch"), ("runtime-onnx", "torch"), ("runtime-full", "kopf")]
)
def test_nothing_is_where_it_does_not_belong(lock: str, absent: str) -> None:
    assert absent not in pins(lock)


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.stem)
def test_every_pin_has_a_hash_and_no_file_names_an_index(lock: Path) -> None:
    text = lock.read_text()
    assert "index-url" not in text and "find-links" not in text
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert blocks and all("--hash=sha256:" in block for block in blocks)
