"""From an ensemble, the devices and the profiles to the question that the planner answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ensemble_operator.api.ensemble import EnsembleSpec, MemberSpec
from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.pairs import pair_types, possible_pair_types
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Profile
from ensemble_operator.profiles.table import ProfileTable, Want
from ensemble_runtime.config import DeviceKind, Partition
from ensemble_runtime.errors import DeviceUnavailableError, ManifestError


def usable(spec: EnsembleSpec, devices: Sequence[Device]) -> tuple[Device, ...]:
    """The devices of this machine that the ensemble may use.

    Raises:
        DeviceUnavailableError: There is none, or none for some member, or more are needed than the ensemble permits.
    """
    kinds = spec.devices.effective_kinds
    found = tuple(device for device in devices if device.kind in kinds)
    for i, member in enumerate(spec.members):
        if not any(device.kind in member.device_kinds for device in found):
            wanted = ", ".join(kind.value for kind in kinds if kind in member.device_kinds)
            raise DeviceUnavailableError(
                f"spec.members[{i}]: '{member.name}' may run on {wanted}; no such device is here"
            )
    return _most(spec, found)


def _most(spec: EnsembleSpec, devices: Sequence[Device]) -> tuple[Device, ...]:
    """Of more devices than `devices.max` the most capable: one for each member first, then whatever is best."""
    most = spec.devices.max
    if most is None or len(devices) <= most:
        return tuple(devices)
    ranked = sorted(devices, key=lambda device: (_KINDS.index(device.kind), -device.memory_bytes))
    needed = dict.fromkeys(
        next(device.name for device in ranked if device.kind in member.device_kinds) for member in spec.members
    )
    if len(needed) > most:
        raise DeviceUnavailableError(f"spec.devices.max: {most}; the members' deviceKinds need {len(needed)} devices")
    chosen = list(dict.fromkeys((*needed, *(device.name for device in ranked))))[:most]
    return tuple(device for device in devices if device.name in chosen)


_KINDS = tuple(DeviceKind)
"""The fastest first."""


def wants(spec: EnsembleSpec, digests: Mapping[str, str], devices: Sequence[Device]) -> Iterator[Want]:
    """The profiles that planning needs: of every member on every type of device that it may run on."""
    for member in spec.members:
        for device_type in _types(member, devices):
            yield Want(digests[member.name], device_type, member.precision.value, member.batch_sizes)


def pair_wants(spec: EnsembleSpec, digests: Mapping[str, str], devices: Sequence[Device]) -> Iterator[Want]:
    """The same of members with `partition` on every type of a pair of devices."""
    for member in spec.members:
        for device_type in _pairs(member, devices):
            digest, precision = digests[member.name], member.precision.value
            yield Want(digest, device_type, precision, member.batch_sizes, member.partition)


def question(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    devices: Sequence[Device],
    profiles: ProfileTable,
    *,
    pairs: bool = False,
) -> Problem:
    """The planner's problem.

    Args:
        spec: The ensemble.
        digests: Model digest of each member.
        devices: Those that the ensemble may use (see `usable`).
        profiles: All that is known; points of batch sizes that the member does not permit are left out.
        pairs: Members with `partition` may stand on two devices, where a profile tells what that costs.

    Raises:
        ManifestError: A member has no profile on any device that it may run on.
    """
    members = []
    for i, member in enumerate(spec.members):
        types = _types(member, devices)
        known = {t: p for t in types if (p := _permitted(member, digests[member.name], t, profiles))}
        over_types = possible_pair_types(_able(member, devices)) if pairs and member.partition is not None else ()
        split = ((t, _permitted(member, digests[member.name], t, profiles, member.partition)) for t in over_types)
        over = {t: p for t, p in split if p}
        if not known and not over:
            raise ManifestError(
                f"spec.members[{i}]: no profile of '{member.name}' (sha256 {digests[member.name]}, {member.precision}) "
                f"on {', '.join(types)}; add a ModelProfile for it"
            )
        members.append(PlanMember(member.name, known, over))
    objective = spec.objective
    return Problem(
        tuple(devices),
        tuple(members),
        objective,
        _interference(spec, digests, profiles),
        node_cost=objective.node_cost,
        move_cost=objective.move_cost,
    )


def _types(member: MemberSpec, devices: Sequence[Device]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(device.type for device in devices if device.kind in member.device_kinds))


def _pairs(member: MemberSpec, devices: Sequence[Device]) -> tuple[str, ...]:
    """Types of pairs of devices that a member may be partitioned over."""
    return pair_types(_able(member, devices)) if member.partition is not None else ()


def _able(member: MemberSpec, devices: Sequence[Device]) -> tuple[Device, ...]:
    return tuple(device for device in devices if device.kind in member.device_kinds)


def _permitted(
    member: MemberSpec, digest: str, device_type: str, profiles: ProfileTable, partition: Partition | None = None
) -> Profile | None:
    profile = profiles.get(digest, device_type, member.precision.value, partition)
    points = tuple(p for p in profile.points if p.batch_size in member.batch_sizes) if profile else ()
    return replace(profile, points=points) if profile and points else None


def _interference(
    spec: EnsembleSpec, digests: Mapping[str, str], profiles: ProfileTable
) -> dict[tuple[str, str, str], float]:
    names: dict[str, list[str]] = {}
    for member in spec.members:
        names.setdefault(digests[member.name], []).append(member.name)
    return {
        (device_type, a, b): factor
        for (device_type, one, other), factor in profiles.interference.items()
        for a in names.get(one, ())
        for b in names.get(other, ())
        if a != b
    }
