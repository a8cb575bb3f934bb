"""From the text of a manifest to its documents, or to everything that is wrong with it at once."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import ValidationError

from ensemble_operator.api.contradiction import Path
from ensemble_operator.api.document import Document, Fault, documents
from ensemble_operator.api.ensemble import EnsembleSpec, InferenceEnsemble
from ensemble_operator.api.faults import explain
from ensemble_operator.api.profile import ModelProfile
from ensemble_runtime.config import ModelSource, Schema
from ensemble_runtime.errors import ManifestError

_KINDS: dict[str, type[Schema]] = {"InferenceEnsemble": InferenceEnsemble, "ModelProfile": ModelProfile}
_MOST_FAULTS = 50


@dataclass(frozen=True)
class Manifest:
    """What one file holds: an ensemble and the profiles written beside it."""

    ensemble: InferenceEnsemble
    profiles: tuple[ModelProfile, ...]


def load_manifest(text: str, *, folder: str, source: str = "manifest") -> Manifest:
    """Read a manifest: one InferenceEnsemble, and any number of ModelProfiles, as YAML documents.

    Args:
        text: The YAML text.
        folder: Absolute path against which ``file://./...`` is resolved.
        source: Name of the text in messages.

    Raises:
        ManifestError: One line a fault, each with the line of the text, the path and what was expected.
    """
    ensembles, profiles = _read(text, folder, source)
    if len(ensembles) != 1:
        raise ManifestError(f"{source}: got {len(ensembles)} documents of kind InferenceEnsemble, expected exactly one")
    return Manifest(ensembles[0], tuple(profiles))


def load_profiles(text: str, *, source: str = "profiles") -> tuple[ModelProfile, ...]:
    """Read a file of ModelProfiles.

    Raises:
        ManifestError: As `load_manifest`; also when there is anything but ModelProfiles.
    """
    ensembles, profiles = _read(text, "/", source)
    if ensembles or not profiles:
        raise ManifestError(f"{source}: expected documents of kind ModelProfile and no other")
    return tuple(profiles)


def _read(text: str, folder: str, source: str) -> tuple[list[InferenceEnsemble], list[ModelProfile]]:
    ensembles: list[InferenceEnsemble] = []
    profiles: list[ModelProfile] = []
    faults: list[Fault] = []
    try:
        for document in documents(text):
            found = _parse(document, folder)
            if isinstance(found, InferenceEnsemble):
                ensembles.append(found)
            elif isinstance(found, ModelProfile):
                profiles.append(found)
            else:
                faults += found
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "cannot be read"
        faults.append(Fault((), f"not YAML: {problem}", mark.line + 1 if mark else None))
    except (yaml.YAMLError, ValueError) as error:
        faults.append(Fault((), str(error).replace("\n", " ")))
    if faults:
        raise ManifestError("\n".join(_lines(faults, source)))
    return ensembles, profiles


def _lines(faults: list[Fault], source: str) -> Iterator[str]:
    ordered = sorted(faults, key=lambda fault: fault.line or 0)
    for fault in ordered[:_MOST_FAULTS]:
        yield f"{source}:{fault.line}: {fault}" if fault.line else f"{source}: {fault}"
    if len(ordered) > _MOST_FAULTS:
        yield f"{source}: and {len(ordered) - _MOST_FAULTS} more faults"


def _parse(document: Document, folder: str) -> InferenceEnsemble | ModelProfile | list[Fault]:
    faults = list(document.faults)
    model = _KINDS.get(_kind(document))
    if model is None:
        faults.append(Fault(("kind",), f"got {_kind(document) or 'nothing'}, expected one of {', '.join(_KINDS)}"))
        return _placed(faults, document)
    parsed = _validated(model, document.value, faults)
    if isinstance(parsed, InferenceEnsemble):
        spec = _with_absolute_files(parsed.spec, folder, faults)
        parsed = parsed.model_copy(update={"spec": spec})
    if faults or parsed is None:
        return _placed(faults, document)
    assert isinstance(parsed, InferenceEnsemble | ModelProfile)
    return parsed


def _kind(document: Document) -> str:
    return str(document.value.get("kind", "")) if isinstance(document.value, dict) else ""


_Model = TypeVar("_Model", bound=Schema)


def _validated(model: type[_Model], value: object, faults: list[Fault]) -> _Model | None:
    # By way of JSON, strictly and by alias: what the API server would refuse is refused here, e.g. "3" for a number.
    try:
        return model.model_validate_json(json.dumps(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        faults += explain(error, model)
        return None


def _placed(faults: list[Fault], document: Document) -> list[Fault]:
    return [fault if fault.line else replace(fault, line=document.line(fault.path)) for fault in faults]


def _with_absolute_files(spec: EnsembleSpec, folder: str, faults: list[Fault]) -> EnsembleSpec:
    members = tuple(
        member.model_copy(update={"model": _absolute(member.model, folder, ("spec", "members", i, "model"), faults)})
        for i, member in enumerate(spec.members)
    )
    stacker = spec.combination.model
    if stacker is not None:
        stacker = _absolute(stacker, folder, ("spec", "combination", "model"), faults)
    combination = spec.combination.model_copy(update={"model": stacker})
    return spec.model_copy(update={"members": members, "combination": combination})


def _absolute(source: ModelSource, folder: str, path: Path, faults: list[Fault]) -> ModelSource:
    """Resolve ``file://./x`` and ``file://../x`` against the manifest's folder."""
    if not source.uri.startswith("file://"):
        return source
    host = urlsplit(source.uri).netloc
    if host in (".", ".."):
        relative = unquote(source.uri.removeprefix("file://"))
        return source.model_copy(update={"uri": "file://" + posixpath.normpath(posixpath.join(folder, relative))})
    if host not in ("", "localhost"):
        name = source.uri.removeprefix("file://")
        message = f"got '{source.uri}', expected file:///{name} (absolute) or file://./{name} (beside the manifest)"
        faults.append(Fault((*path, "uri"), message))
    return source
