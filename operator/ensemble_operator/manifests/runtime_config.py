"""From a plan to the configuration of the runtime that serves it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemble_operator.api.ensemble import InferenceEnsemble, MemberSpec
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.models import in_pod
from ensemble_operator.manifests.resources import cell_bytes, second_bytes
from ensemble_operator.manifests.shards import Shard
from ensemble_operator.manifests.token import TOKEN_FILE
from ensemble_operator.planner.plan import Plan
from ensemble_runtime import config
from ensemble_runtime.config import DeviceKind, Listen, Member, Remote, RuntimeConfig, Serving
from ensemble_runtime.serving import LONGEST_MS

PORT = 8000
_PATIENCE = 3
"""So many times the seconds of the plan's slowest batch pass before a member is taken for hung, unless it is stated."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A shard on another node, as its head knows it."""

    shard: Shard
    url: str

    @property
    def name(self) -> str:
        """What the head's cells name in place of a device."""
        return f"remote-{self.shard.index}"

    def cells(self) -> list[config.Cell]:
        """One for each of its members: at once it takes what all its cells of the member take together."""
        rows: dict[str, int] = {}
        for _, member, size in self.shard.cells:
            rows[member] = rows.get(member, 0) + size
        return [config.Cell(device=self.name, member=member, batch_size=size) for member, size in rows.items()]


def runtime_config(
    ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan, listen: Listen
) -> RuntimeConfig:
    """The configuration of the one runtime that serves the whole plan on this machine.

    Args:
        ensemble: What is to be served.
        digests: Model digest of each member: what was profiled is pinned, so that nothing else is served.
        plan: Who runs where; devices without a cell are left out.
        listen: The address to serve on.
    """
    spec = ensemble.spec
    used = {device.name: device for device, _, _ in plan.cells}
    beside = [cores for (_, name), cores in plan.problem.companions.items() if name in used]
    return RuntimeConfig(
        name=ensemble.metadata.name,
        members=tuple(plain_member(member, digests[member.name]) for member in spec.members),
        inputs=spec.inputs,
        outputs=spec.outputs,
        combination=spec.combination,
        devices=(
            *(_with_stated_seconds(plain_device(device), plan) for device in used.values()),
            *(plain_device(cores) for cores in beside),
        ),
        cells=tuple(_cell(*cell, plan) for cell in plan.cells),
        serving=_serving(spec.serving, plan),
        listen=listen,
        predicted_rows_per_second=plan.rate,
    )


def head_config(
    ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan, shard: Shard, others: Sequence[Elsewhere] = ()
) -> RuntimeConfig:
    """The configuration of the pod that serves; its devices are slots, which the runtime fills when it starts.

    Args:
        ensemble: What is to be served.
        digests: Model digest of each member.
        plan: Whose cells the copy runs.
        shard: The part of this pod.
        others: The other shards of the copy.
    """
    spec = ensemble.spec
    stacking = spec.combination.model
    return RuntimeConfig(
        name=ensemble.metadata.name,
        members=tuple(_in_pod(plain_member(member, digests[member.name])) for member in spec.members),
        inputs=spec.inputs,
        outputs=spec.outputs,
        combination=spec.combination.model_copy(update={"model": in_pod(stacking) if stacking else None}),
        devices=_slots(shard, plan),
        cells=(*(_cell(*cell, plan) for cell in shard.cells), *(cell for other in others for cell in other.cells())),
        remotes=tuple(Remote(name=other.name, url=other.url, token_file=TOKEN_FILE) for other in others),
        serving=_serving(spec.serving, plan),
        listen=_ANYBODY,
        predicted_rows_per_second=plan.rate,
    )


def shard_config(ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan, shard: Shard) -> RuntimeConfig:
    """The configuration of a pod that answers to its head: its own members, every one awaited; the head combines."""
    spec = ensemble.spec
    present = {name for _, name, _ in shard.cells}
    members = [plain_member(member, digests[member.name]) for member in spec.members if member.name in present]
    return RuntimeConfig(
        name=ensemble.metadata.name,
        members=tuple(_in_pod(member).model_copy(update={"shadow": False}) for member in members),
        inputs=spec.inputs,
        outputs=spec.outputs,
        devices=_slots(shard, plan),
        cells=tuple(_cell(*cell, plan) for cell in shard.cells),
        shard=config.Shard(token_file=TOKEN_FILE),
        serving=_serving(spec.serving, plan).model_copy(update={"quorum": None}),
        listen=_ANYBODY,
    )


def plain_member(member: MemberSpec, digest: str) -> Member:
    """A member as the runtime knows it, pinned to a digest."""
    return Member(
        name=member.name,
        model=member.model.model_copy(update={"sha256": digest}),
        weight=member.weight,
        precision=member.precision,
        shadow=member.shadow,
        partition=member.partition,
    )


def plain_device(device: Device) -> config.Device:
    """A device as the runtime knows it."""
    return config.Device(
        name=device.name,
        kind=device.kind,
        type=device.type,
        memory_bytes=device.memory_bytes,
        cores=device.cores,
        uuid=device.uuid,
    )


def _serving(serving: Serving, plan: Plan) -> Serving:
    """What the manifest says; if not when a member hangs, then that its planned batches, at the least, are no hang."""
    profiles = {member.name: member.profiles for member in plan.problem.members}
    points = [profiles[member][device.type].at(size) for device, member, size in plan.cells]
    seconds = math.ceil(_PATIENCE * max((point.seconds for point in points if point is not None), default=0))
    if serving.member_timeout_ms is not None or seconds <= serving.patience:
        return serving
    return Serving.model_validate(serving.model_dump() | {"member_timeout_ms": min(seconds * 1000, LONGEST_MS)})


_ANYBODY = Listen(host="0.0.0.0", port=PORT)  # noqa: S104  # a pod's own address is not known before it runs


def _in_pod(member: Member) -> Member:
    return member.model_copy(update={"model": in_pod(member.model)})


def _cell(device: Device, member: str, size: int, plan: Plan) -> config.Cell:
    """A cell, on two devices if its device is a pair and its member uses both."""
    second = plan.second(device, member)
    if second is None:
        return config.Cell(device=device.name, member=member, batch_size=size)
    booked = cell_bytes((device, member, size), plan)
    return config.Cell(
        device=device.name, member=member, batch_size=size, second_device=second.name, scarce_bytes=booked
    )


def _slots(shard: Shard, plan: Plan) -> tuple[config.Device, ...]:
    return tuple(_with_stated_seconds(_slot(device, shard, plan), plan) for device in shard.devices)


def _slot(device: Device, shard: Shard, plan: Plan) -> config.Device:
    """A device as a pod gets it: a core set with the memory that its cells were promised, a GPU with all of its own."""
    slot = plain_device(device)
    if device.kind is DeviceKind.CPU:
        promised = sum(cell_bytes(cell, plan) for cell in shard.cells if cell[0].name == device.name)
        promised += sum(second_bytes(cell, plan) for cell in shard.cells if plan.second(*cell[:2]) == device)
        return slot.model_copy(update={"cores": (), "memory_bytes": max(1, promised)})
    return slot


def _with_stated_seconds(device: config.Device, plan: Plan) -> config.Device:
    """On a simulated device, what each of its members costs at every batch size that is known."""
    if device.kind is not DeviceKind.SIMULATED:
        return device
    present = {name for placed, name, _ in plan.cells if placed.name == device.name}
    seconds = {
        member.name: {point.batch_size: point.seconds for point in member.profiles[device.type].points}
        for member in plan.problem.members
        if member.name in present
    }
    return device.model_copy(update={"seconds": seconds})
