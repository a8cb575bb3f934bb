"""Brings model files to this machine by way of the runtime, and shows how far that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.cli.output import progress
from ensemble_operator.inventory.runtime_command import records
from ensemble_operator.manifests.runtime_config import plain_member
from ensemble_runtime.config import DeviceKind, Member

if TYPE_CHECKING:
    from ensemble_operator.planner.plan import Plan

_MB = 1e6


def digests_of(members: Sequence[Member]) -> dict[str, str]:
    """Fetch the members' models; returns the digest of each, by the member's name.

    Raises:
        RuntimeCommandError: One cannot be fetched.
    """
    return _fetch(members)


def fetch_missing(members: Iterable[Member]) -> None:
    """Fetch what of the members' pinned models is neither in the cache nor on this machine's disks.

    Whoever loads a model would fetch it as well, but cannot show how far that is. What is there is not even read here:
    it is checked when it is loaded.

    Raises:
        RuntimeCommandError: One cannot be fetched.
    """
    remote = [m for m in members if m.model.sha256 and not m.model.uri.startswith("file://")]
    if remote:
        _fetch(remote, "--missing")


def loaded_by(ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan) -> list[Member]:
    """The members whose models a plan's real devices will load, and the one that combines them."""
    real = {name for device, name, _ in plan.cells if device.kind is not DeviceKind.SIMULATED}
    stacking = ensemble.spec.combination.model
    combining = [Member(name="combination", model=stacking)] if stacking else []
    return [*(plain_member(m, digests[m.name]) for m in ensemble.spec.members if m.name in real), *combining]


def _fetch(members: Sequence[Member], *options: str) -> dict[str, str]:
    plain = set(Member.model_fields)  # without what concerns only the planner
    request = {"members": [m.model_dump(mode="json", by_alias=True, include=plain) for m in members]}
    digests: dict[str, str] = {}
    with progress() as bar:
        task = bar.add_task("fetching", total=None, detail=", ".join(member.name for member in members))
        for record in records("fetch", *options, document=request):
            if "sha256" in record:
                digests[record["member"]] = record["sha256"]
            else:
                bar.update(task, completed=record["bytes"], total=record["ofBytes"], detail=_detail(record))
    return digests


def _detail(record: dict[str, Any]) -> str:
    known = f" of {record['ofBytes'] / _MB:,.0f}" if record["ofBytes"] else ""
    return f"{record['member']}: {record['bytes'] / _MB:,.0f}{known} MB"
