"""`ensemblectl profile`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ensemble_operator.api.ensemble import API_VERSION
from ensemble_operator.cli.output import Output, emit, figure, grid
from ensemble_operator.cli.preparing import Prepared, prepare
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import cpu_model
from ensemble_operator.profiles.table import MIB


def show_profiles(file: Path, profiles: Sequence[Path], *, refresh: bool, output: Output) -> None:
    """Measure what is missing, and print all that is known of the members on the devices here.

    Raises:
        EnsembleError: Something is wrong or missing, or a member cannot be measured.
    """
    prepared = prepare(file, profiles, refresh=refresh)
    known = list(_known(prepared))
    rows = [_row(name, profile.device_type, point) for name, profile in known for point in profile.points]
    columns = ["member", "device type", "batch size", "ms a batch", "rows/s", "MiB"]
    emit(
        output,
        [_document(name, profile) for name, profile in known],
        lambda: grid(f"What the members of '{prepared.ensemble.metadata.name}' cost", columns, rows, left=2),
    )


def _row(member: str, device_type: str, point: Point) -> list[str]:
    figures = (point.seconds * 1000, point.batch_size / point.seconds, point.memory_bytes / MIB)
    return [member, device_type, str(point.batch_size), *map(figure, figures)]


def _known(prepared: Prepared) -> Iterator[tuple[str, Profile]]:
    types = dict.fromkeys(device.type for device in prepared.devices)
    for member in prepared.ensemble.spec.members:
        for device_type in types:
            digest = prepared.digests[member.name]
            if profile := prepared.profiles.get(digest, device_type, member.precision.value):
                yield member.name, profile


def _document(name: str, profile: Profile) -> dict[str, Any]:
    """A ModelProfile. One of CPU cores says which CPU they were of, for it holds for no other."""
    metadata: dict[str, Any] = {
        "name": f"{name}-{profile.device_type}-{profile.precision}".lower().replace(".", "-")[:63]
    }
    if profile.device_type.startswith("cpu-"):
        metadata["annotations"] = {"ensembles.dev/cpu": cpu_model()}
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelProfile",
        "metadata": metadata,
        "spec": {
            "model": {"sha256": profile.digest},
            "deviceType": profile.device_type,
            "precision": profile.precision,
            "points": [
                {"batchSize": p.batch_size, "seconds": p.seconds, "memoryMib": p.memory_bytes / MIB}
                for p in profile.points
            ],
        },
    }
