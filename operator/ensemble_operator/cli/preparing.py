"""What planning needs, brought together: the manifest, the digests, the devices and the profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.api.manifest import Manifest, load_manifest, load_profiles
from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.cli.fetching import digests_of, fetch_missing
from ensemble_operator.cli.measuring import measure, measure_pairs
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.local import local_devices
from ensemble_operator.inventory.simulated import simulated_devices
from ensemble_operator.manifests.question import pair_wants, question, usable, wants
from ensemble_operator.manifests.runtime_config import plain_member
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.store import ProfileStore, cpu_model, default_root
from ensemble_operator.profiles.table import ProfileTable, written
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import ManifestError

_REAL = (DeviceKind.GPU, DeviceKind.CPU)


@dataclass(frozen=True)
class Prepared:
    """A manifest on these devices, with all costs known."""

    ensemble: InferenceEnsemble
    digests: dict[str, str]
    """Model digest of each member."""
    devices: tuple[Device, ...]
    """Those that the ensemble may use."""
    profiles: ProfileTable

    @property
    def problem(self) -> Problem:
        """The planner's question."""
        return question(self.ensemble.spec, self.digests, self.devices, self.profiles, pairs=True)


def prepare(file: Path, profile_files: Sequence[Path], *, refresh: bool = False) -> Prepared:
    """Read a manifest, find digests and devices, and measure what is not known yet.

    What is written in the manifest or in profile files counts before what was measured earlier.

    Args:
        file: The manifest.
        profile_files: Files of ModelProfiles besides.
        refresh: Measure again what was measured before.

    Raises:
        EnsembleError: The manifest is wrong, a model or a device is missing, or measuring failed.
    """
    manifest = read_manifest(file)
    stated = written([*manifest.profiles, *(p for path in profile_files for p in _read_profiles(path))])
    spec = manifest.ensemble.spec
    devices = usable(spec, _devices(manifest))
    digests = _digests(manifest.ensemble)
    store = ProfileStore(default_root(), cpu_model())
    real = [device for device in devices if device.kind in _REAL]
    needed = (*wants(spec, digests, real), *pair_wants(spec, digests, real))
    if not refresh:
        # Of a split, what is written may hold for any objective: then what was measured for this one does not count.
        open_ = (want for want in needed if want.partition is None or stated.missing([want]))
        stated = store.load(want.key for want in open_).merge(stated)
    missing = stated.missing(needed)
    unknown = {want.digest for want in missing}
    fetch_missing(plain_member(m, digests[m.name]) for m in spec.members if digests[m.name] in unknown)
    measured = measure(spec, digests, devices, missing, store)
    return Prepared(manifest.ensemble, digests, devices, measured.merge(stated))


def with_pairs(prepared: Prepared) -> Prepared:
    """The same with what is not known yet of how members get along that the plan puts on one device, measured."""
    store = ProfileStore(default_root(), cpu_model())
    spec, digests, profiles = prepared.ensemble.spec, prepared.digests, prepared.profiles
    measured = measure_pairs(spec, digests, profiles, make_plan(prepared.problem), store)
    return replace(prepared, profiles=measured.merge(profiles))


def read_manifest(file: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ManifestError: The file cannot be read, or something is wrong in it.
    """
    return load_manifest(_text(file), folder=str(file.resolve().parent), source=str(file))


def _read_profiles(file: Path) -> tuple[ModelProfile, ...]:
    return load_profiles(_text(file), source=str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file}: not a text file in UTF-8 (byte {error.start})") from error


def _devices(manifest: Manifest) -> tuple[Device, ...]:
    choice = manifest.ensemble.spec.devices
    local = local_devices(choice.cpu_cores_per_device) if set(_REAL) & set(choice.effective_kinds) else ()
    return (*local, *simulated_devices(choice.simulated))


def _digests(ensemble: InferenceEnsemble) -> dict[str, str]:
    """Digests as pinned; models without one are fetched to find theirs."""
    members = ensemble.spec.members
    digests = {m.name: m.model.sha256 for m in members if m.model.sha256}
    unpinned = [m for m in members if m.name not in digests]
    return digests | (digests_of(unpinned) if unpinned else {})
