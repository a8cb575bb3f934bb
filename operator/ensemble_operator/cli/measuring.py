"""Measures what no profile tells yet, by way of the runtime, and keeps every point as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ensemble_operator.api.ensemble import EnsembleSpec, MemberSpec
from ensemble_operator.cli.output import note, progress
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.runtime_command import RuntimeCommandError, records
from ensemble_operator.manifests.runtime_config import plain_device, plain_member
from ensemble_operator.planner.pairs import pair_of
from ensemble_operator.planner.plan import Plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import ProfileStore
from ensemble_operator.profiles.table import ProfileTable, Together, Want, table
from ensemble_runtime.config import DeviceKind, Schema
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError


def measure(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    devices: Sequence[Device],
    missing: Sequence[Want],
    store: ProfileStore,
) -> ProfileTable:
    """Measure all that is missing, each type of device on the first of its type.

    Raises:
        RuntimeCommandError: A model could not be loaded or run. One that is too large for a device, or that cannot be
            split, is only left out there.
    """
    found: dict[tuple[Want, int], Profile] = {}
    with progress() as bar:
        total = sum(len(want.batch_sizes) for want in missing)
        task = bar.add_task("profiling", total=total, detail="", visible=bool(total))
        for want in missing:
            member = _member_of(want, spec, digests)
            bar.update(task, detail=f"{member.name} on {want.device_type}")
            try:
                for profile in _measured(spec, member, devices, want):
                    store.save(profile)
                    found[want, profile.points[0].batch_size] = profile
                    bar.update(task, completed=len(found))
            except RuntimeCommandError as error:
                # What cannot be split is whole on its devices: there it is seen whether the model is broken.
                spared = {OutOfMemoryError.exit_code, *([ModelInvalidError.exit_code] if want.partition else [])}
                if error.exit_code not in spared:
                    raise
                note(f"{error}; the planner does without it")
    return table(found.values())


def _member_of(want: Want, spec: EnsembleSpec, digests: Mapping[str, str]) -> MemberSpec:
    """A member that needs it: of two members of one file one may be whole, or split for something else."""
    return next(
        member
        for member in spec.members
        if (digests[member.name], member.precision) == (want.digest, want.precision)
        and want.partition in (None, member.partition)
    )


def measure_pairs(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    profiles: ProfileTable,
    plan: Plan,
    store: ProfileStore,
) -> ProfileTable:
    """Measure how the members get along that a plan puts together on real devices, where it is not known yet.

    Raises:
        RuntimeCommandError: A model could not be loaded or run.
    """
    factors: dict[Together, float] = {}
    members = {member.name: member for member in spec.members}
    wanted = [
        (device, pair, sizes)
        for device, pair, sizes in _together(plan)
        if (device.type, *(digests[name] for name in pair)) not in profiles.interference
    ]
    with progress() as bar:
        task = bar.add_task("profiling pairs", total=len(wanted), detail="", visible=bool(wanted))
        for device, pair, sizes in wanted:
            bar.update(task, detail=f"{' and '.join(pair)} on {device.type}")
            request = {
                "members": [_json(plain_member(members[name], digests[name])) for name in pair],
                "inputs": [_json(tensor) for tensor in spec.inputs],
                "outputs": [_json(tensor) for tensor in spec.outputs],
                "device": _json(plain_device(device)),
                "batchSizes": sizes,
                "pairs": [pair],
            }
            for record in records("interference", document=request):
                one, other = record["digest"], record["other"]
                factors[device.type, one, other] = factor = min(20.0, max(0.05, record["factor"]))
                if profile := profiles.get(one, device.type, members[pair[0]].precision.value):
                    store.save(profile, {other: factor})
            bar.advance(task)
    return ProfileTable({}, factors)


def _together(plan: Plan) -> Iterator[tuple[Device, tuple[str, str], dict[str, int]]]:
    """Each pair of members that shares a device of a type, once, with the middle batch size of each there."""
    seen: set[tuple[str, str, str]] = set()
    for device, row in zip(plan.problem.devices, plan.matrix, strict=True):
        there = [member for member, batch in zip(plan.problem.members, row, strict=True) if batch]
        sizes = {member.name: member.profiles[device.type].middle.batch_size for member in there}
        for pair in combinations(sorted(sizes), 2):
            if device.kind is not DeviceKind.SIMULATED and (device.type, *pair) not in seen:
                seen.add((device.type, *pair))
                yield device, pair, {name: sizes[name] for name in pair}


def _measured(spec: EnsembleSpec, member: MemberSpec, devices: Sequence[Device], want: Want) -> Iterator[Profile]:
    """Profiles of one point each, as the runtime measures them: of one batch size the last counts."""
    device = next((d for d in devices if d.type == want.device_type), None)
    if device is None:
        yield from _partitioned(spec, member, pair_of(devices, want.device_type), want)
        return
    request = {
        "members": [_json(plain_member(member, want.digest))],
        "inputs": [_json(tensor) for tensor in spec.inputs],
        "outputs": [_json(tensor) for tensor in spec.outputs],
        "devices": [_json(plain_device(device))],
        "batchSizes": want.batch_sizes,
        "peers": [_json(plain_device(other)) for other in devices if other.cores and other.node == device.node],
    }
    for record in records("profile", document=request):
        if "seconds" in record:
            point = Point(record["batchSize"], record["seconds"], record["memoryBytes"])
            yield Profile(want.digest, want.device_type, want.precision, (point,))


def _partitioned(spec: EnsembleSpec, member: MemberSpec, pair: tuple[Device, Device], want: Want) -> Iterator[Profile]:
    """The same of a member that a pair of devices shares."""
    request = {
        "member": _json(plain_member(member, want.digest)),
        "inputs": [_json(tensor) for tensor in spec.inputs],
        "devices": [_json(plain_device(device)) for device in pair],
        "batchSizes": want.batch_sizes,
        "chart": False,
    }
    for record in records("partition", document=request):
        point = Point(record["batchSize"], record["seconds"], record["memoryBytes"], record["secondBytes"])
        yield Profile(want.digest, want.device_type, want.precision, (point,), want.partition)


def _json(document: Schema) -> dict[str, Any]:
    return document.model_dump(mode="json", by_alias=True)
