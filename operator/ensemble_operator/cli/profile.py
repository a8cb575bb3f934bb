"""`ensemblectl profile`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from ensemble_operator.api.ensemble import API_VERSION
from ensemble_operator.cli.output import Output, emit, figure, grid
from ensemble_operator.cli.preparing import Prepared, prepare, with_pairs
from ensemble_operator.planner.pairs import pair_types
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.store import cpu_model
from ensemble_operator.profiles.table import MIB, Together


def show_profiles(file: Path, profiles: Sequence[Path], *, refresh: bool, pairs: bool, output: Output) -> None:
    """Measure what is missing, and print all that is known of the members on the devices here.

    Args:
        file: The manifest.
        profiles: Files of ModelProfiles besides.
        refresh: Measure again what was measured before.
        pairs: Also measure how members get along that the plan puts together.
        output: Table, JSON or YAML.

    Raises:
        EnsembleError: Something is wrong or missing, or a member cannot be measured.
    """
    prepared = prepare(file, profiles, refresh=refresh)
    if pairs:
        prepared = with_pairs(prepared)
    known = list(_known(prepared))
    rows = [_row(name, profile.device_type, point) for name, profile in known for point in profile.points]
    columns = ["member", "device type", "batch size", "ms a batch", "rows/s", "MiB"]
    factors = prepared.profiles.interference

    def tables() -> RenderableType:
        costs = grid(f"What the members of '{prepared.ensemble.metadata.name}' cost", columns, rows, left=2)
        together = [_pair_row(prepared, key, factor) for key, factor in factors.items()]
        title = "Rate side by side over rate one after the other"
        return (
            Group(costs, grid(title, ["member", "beside", "device type", "factor"], together, left=3))
            if together
            else costs
        )

    emit(output, [_document(name, profile, factors) for name, profile in known], tables)


def _row(member: str, device_type: str, point: Point) -> list[str]:
    figures = (point.seconds * 1000, point.batch_size / point.seconds, point.memory_bytes / MIB)
    return [member, device_type, str(point.batch_size), *map(figure, figures)]


def _pair_row(prepared: Prepared, key: Together, factor: float) -> list[str]:
    device_type, one, other = key
    names = {digest: name for name, digest in prepared.digests.items()}
    return [names.get(one, one[:12]), names.get(other, other[:12]), device_type, f"{factor:.2f}"]


def _known(prepared: Prepared) -> Iterator[tuple[str, Profile]]:
    types = dict.fromkeys((*(device.type for device in prepared.devices), *pair_types(prepared.devices)))
    for member in prepared.ensemble.spec.members:
        for device_type in types:
            digest = prepared.digests[member.name]
            if profile := prepared.profiles.get(digest, device_type, member.precision.value, member.partition):
                yield member.name, profile


def _document(name: str, profile: Profile, factors: Mapping[Together, float]) -> dict[str, Any]:
    """A ModelProfile. One of CPU cores says which CPU they were of, for it holds for no other."""
    metadata: dict[str, Any] = {
        "name": f"{name}-{profile.device_type}-{profile.precision}".lower().replace(".", "-").replace(":", "-")[:63]
    }
    if "cpu-" in profile.device_type:
        metadata["annotations"] = {"ensembles.dev/cpu": cpu_model()}
    split = profile.partition
    beside = {
        other: factor
        for (device_type, one, other), factor in factors.items()
        if (device_type, one) == (profile.device_type, profile.digest)
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelProfile",
        "metadata": metadata,
        "spec": {
            "model": {"sha256": profile.digest},
            "deviceType": profile.device_type,
            "precision": profile.precision,
            **({} if split is None else {"partition": split.model_dump(mode="json", by_alias=True, exclude_none=True)}),
            "points": [
                {"batchSize": p.batch_size, "seconds": p.seconds, "memoryMib": p.memory_bytes / MIB}
                | ({"secondMemoryMib": p.second_bytes / MIB} if p.second_bytes else {})
                for p in profile.points
            ],
            **({"interference": [{"sha256": o, "factor": f} for o, f in beside.items()]} if beside else {}),
        },
    }
