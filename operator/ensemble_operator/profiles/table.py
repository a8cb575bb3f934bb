"""All profiles at hand, by what they are profiles of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import Partition

MIB = 2**20

Key = tuple[str, str, str, Partition | None]
"""Model digest, device type, precision; on a pair of devices also what the split is best at."""
Together = tuple[str, str, str]
"""Device type, digest, digest."""


@dataclass(frozen=True, slots=True)
class Want:
    """Points that a plan needs of one (model digest, device type, precision, partition)."""

    digest: str
    device_type: str
    precision: str
    batch_sizes: tuple[int, ...]
    partition: Partition | None = None

    @property
    def key(self) -> Key:
        """Of the profile that has them."""
        return self.digest, self.device_type, self.precision, self.partition


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Profiles by key, and how pairs of models get along on a device type."""

    profiles: Mapping[Key, Profile] = field(default_factory=dict)
    interference: Mapping[Together, float] = field(default_factory=dict)
    """Rate side by side over rate one after the other."""

    def get(self, digest: str, device_type: str, precision: str, partition: Partition | None = None) -> Profile | None:
        """The profile of a model on a device type at a precision; of a split, one that states none holds for any."""
        found = self.profiles.get((digest, device_type, precision, partition))
        return found or self.profiles.get((digest, device_type, precision, None))

    def merge(self, other: ProfileTable) -> ProfileTable:
        """Both tables in one; where both have a point, the other's counts."""
        profiles = dict(self.profiles)
        for key, profile in other.profiles.items():
            profiles[key] = joined(profiles[key], profile) if key in profiles else profile
        return ProfileTable(profiles, {**self.interference, **other.interference})

    def missing(self, wants: Iterable[Want]) -> tuple[Want, ...]:
        """What is wanted and not there, in the order given; each key once."""
        missing: dict[Key, set[int]] = {}
        for want in wants:
            profile = self.get(*want.key)
            there = {point.batch_size for point in profile.points} if profile else set()
            if lacking := set(want.batch_sizes) - there:
                missing.setdefault(want.key, set()).update(lacking)
        return tuple(Want(*key[:3], tuple(sorted(sizes)), key[3]) for key, sizes in missing.items())


def table(profiles: Iterable[Profile]) -> ProfileTable:
    """A table of profiles; several of one key are joined, later points counting."""
    result = ProfileTable()
    for profile in profiles:
        result = result.merge(ProfileTable({key_of(profile): profile}))
    return result


def key_of(profile: Profile) -> Key:
    """What a profile is of."""
    return profile.digest, profile.device_type, profile.precision, profile.partition


def joined(old: Profile, new: Profile) -> Profile:
    """The points of two profiles of one key, by rising batch size; where both have one, the new counts."""
    points = {point.batch_size: point for point in (*old.points, *new.points)}
    return replace(old, points=tuple(sorted(points.values())))


def written(documents: Iterable[ModelProfile]) -> ProfileTable:
    """The table that ModelProfile documents state."""
    result = ProfileTable()
    for document in documents:
        spec = document.spec
        digest, device_type, precision = spec.model.sha256, spec.device_type, spec.precision.value
        points = (
            Point(p.batch_size, p.seconds, round(p.memory_mib * MIB), round(p.second_memory_mib * MIB))
            for p in spec.points
        )
        profile = Profile(digest, device_type, precision, tuple(sorted(points)), spec.partition)
        factors = {(device_type, digest, other.sha256): other.factor for other in spec.interference}
        result = result.merge(ProfileTable({key_of(profile): profile}, factors))
    return result
