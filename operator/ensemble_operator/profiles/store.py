"""Profiles kept on disk between runs: one JSON file for each (model digest, device type, precision, partition).

Beside its costs it holds how the model gets along with others on a device of the type.

A GPU's type says what it is on any machine. `cpu-4` does not: four cores of one CPU are not four of another. So
profiles of CPU devices are kept under the CPU's model as well: a home folder that two machines share mixes nothing up.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, ValidationError

from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.table import Key, ProfileTable, joined, key_of, table
from ensemble_runtime.config import BatchSize, Partition, Schema, Sha256

_log = logging.getLogger(__name__)


def default_root() -> Path:
    """Where profiles are kept: $XDG_CACHE_HOME/ensembles/profiles, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensembles" / "profiles"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What this machine's CPU is, e.g. 'AMD EPYC 7763 64-Core Processor (25-1-1)'; else the architecture.

    Family, model and stepping are added because virtual machines often call every CPU by the same name.
    """
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    version = "-".join(fields[name] for name in ("cpu family", "model", "stepping") if name in fields)
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({version})" if version else name


class _StoredPoint(Schema):
    batch_size: BatchSize
    seconds: float
    memory_bytes: int
    second_bytes: int = 0


class _StoredProfile(Schema):
    digest: Sha256
    device_type: str
    precision: str
    host: str | None
    partition: Partition | None = None
    points: tuple[_StoredPoint, ...]
    interference: dict[Sha256, float] = Field({})


class ProfileStore:
    """A folder of profiles. Safe for processes side by side: writers take turns, readers see whole files."""

    def __init__(self, root: Path, host: str) -> None:
        """Use a folder; `host` is what CPU profiles are kept under (see `cpu_model`)."""
        self._root = root
        self._host = host

    def load(self, keys: Iterable[Key]) -> ProfileTable:
        """The profiles that are there, of these keys."""
        found = [stored for key in keys if (stored := self._read(*key))]
        factors = {(s.device_type, s.digest, other): factor for s in found for other, factor in s.interference.items()}
        return ProfileTable(table(map(_profile, found)).profiles, factors)

    def save(self, profile: Profile, interference: Mapping[str, float] | None = None) -> None:
        """Keep a profile; its points replace those of the same batch sizes, and its factors those of the same models.

        Args:
            profile: What the model costs.
            interference: Digest of another model -> rate side by side over rate one after the other.
        """
        path = self._path(*key_of(profile))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path.parent / ".lock"):
            before = self._read(*key_of(profile))
            whole = joined(_profile(before), profile) if before else profile
            factors = {**(before.interference if before else {}), **(interference or {})}
            replace_file(path, self._stored(whole, factors).model_dump_json(by_alias=True))

    def _stored(self, profile: Profile, factors: dict[str, float]) -> _StoredProfile:
        return _StoredProfile(
            interference=factors,
            digest=profile.digest,
            device_type=profile.device_type,
            precision=profile.precision,
            partition=profile.partition,
            host=self._host_of(profile.device_type),
            points=tuple(
                _StoredPoint(
                    batch_size=p.batch_size, seconds=p.seconds, memory_bytes=p.memory_bytes, second_bytes=p.second_bytes
                )
                for p in profile.points
            ),
        )

    def _read(
        self, digest: str, device_type: str, precision: str, partition: Partition | None
    ) -> _StoredProfile | None:
        path = self._path(digest, device_type, precision, partition)
        try:
            return _StoredProfile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _log.warning("profile %s cannot be read and is measured anew: %s", path, str(error).splitlines()[0])
            return None

    def _host_of(self, device_type: str) -> str | None:
        return self._host if any(part.startswith("cpu-") for part in device_type.split(":")) else None

    def _path(self, digest: str, device_type: str, precision: str, partition: Partition | None) -> Path:
        host = self._host_of(device_type)
        place = device_type if host is None else f"{device_type}@{host[:64]}"
        split = "" if partition is None else f".{partition.objective}-{partition.latency_ms or 0:g}"
        return self._root / digest / f"{quote(place, safe=' ()@')}.{precision}{split}.json"


def _profile(stored: _StoredProfile) -> Profile:
    points = sorted(Point(p.batch_size, p.seconds, p.memory_bytes, p.second_bytes) for p in stored.points)
    return Profile(stored.digest, stored.device_type, stored.precision, tuple(points), stored.partition)


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait for the other writers; the kernel ends the turn of one that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
