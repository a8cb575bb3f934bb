"""Measures what no profile tells yet, by way of the runtime, and keeps every point as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ensemble_operator.api.ensemble import EnsembleSpec, MemberSpec
from ensemble_operator.cli.output import note, progress
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.runtime_command import RuntimeCommandError, records
from ensemble_operator.manifests.runtime_config import plain_device, plain_member
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import ProfileStore
from ensemble_operator.profiles.table import ProfileTable, Want, table
from ensemble_runtime.config import Schema
from ensemble_runtime.errors import OutOfMemoryError


def measure(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    devices: Sequence[Device],
    missing: Sequence[Want],
    store: ProfileStore,
) -> ProfileTable:
    """Measure all that is missing, each type of device on the first of its type.

    Raises:
        RuntimeCommandError: A model could not be loaded or run. One that is too large for a device is only left out.
    """
    found: list[Profile] = []
    with progress() as bar:
        total = sum(len(want.batch_sizes) for want in missing)
        task = bar.add_task("profiling", total=total, detail="", visible=bool(total))
        for want in missing:
            member = next(m for m in spec.members if (digests[m.name], m.precision) == (want.digest, want.precision))
            device = next(d for d in devices if d.type == want.device_type)
            bar.update(task, detail=f"{member.name} on {device.type}")
            try:
                for profile in _measured(spec, member, device, want):
                    store.save(profile)
                    found.append(profile)
                    bar.advance(task)
            except RuntimeCommandError as error:
                if error.exit_code != OutOfMemoryError.exit_code:
                    raise
                note(f"{error}; the planner does without it")
    return table(found)


def _measured(spec: EnsembleSpec, member: MemberSpec, device: Device, want: Want) -> Iterator[Profile]:
    """One profile of one point for each batch size, as the runtime measures them."""
    request = {
        "members": [_json(plain_member(member, want.digest))],
        "inputs": [_json(tensor) for tensor in spec.inputs],
        "outputs": [_json(tensor) for tensor in spec.outputs],
        "devices": [_json(plain_device(device))],
        "batchSizes": want.batch_sizes,
    }
    for record in records("profile", document=request):
        if "seconds" in record:
            point = Point(record["batchSize"], record["seconds"], record["memoryBytes"])
            yield Profile(want.digest, want.device_type, want.precision, (point,))


def _json(document: Schema) -> dict[str, Any]:
    return document.model_dump(mode="json", by_alias=True)
