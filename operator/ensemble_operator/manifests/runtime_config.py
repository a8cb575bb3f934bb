"""From a plan to the configuration of the runtime that serves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ensemble_operator.api.ensemble import InferenceEnsemble, MemberSpec
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.labels import Cell
from ensemble_operator.manifests.models import in_pod
from ensemble_operator.manifests.resources import cell_bytes
from ensemble_operator.manifests.shards import Shard
from ensemble_operator.planner.plan import Plan
from ensemble_runtime import config
from ensemble_runtime.config import DeviceKind, Listen, Member, RuntimeConfig

PORT = 8000


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
    used = {device.name: device for device, _, _ in plan.cells}
    devices = [_with_stated_seconds(plain_device(device), plan) for device in used.values()]
    return _configuration(ensemble, digests, plan, devices, plan.cells, listen)


def shard_config(ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan, shard: Shard) -> RuntimeConfig:
    """The configuration of one pod: the devices are slots, for which the runtime finds devices when it starts."""
    devices = [_with_stated_seconds(_slot(device, shard, plan), plan) for device in shard.devices]
    whole = _configuration(ensemble, digests, plan, devices, shard.cells, Listen(host="0.0.0.0", port=PORT))  # noqa: S104  # a pod's own address is not known before it runs
    members = tuple(m.model_copy(update={"model": in_pod(m.model)}) for m in whole.members)
    stacking = whole.combination.model
    combination = whole.combination.model_copy(update={"model": in_pod(stacking) if stacking else None})
    return whole.model_copy(update={"members": members, "combination": combination})


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


def _configuration(
    ensemble: InferenceEnsemble,
    digests: Mapping[str, str],
    plan: Plan,
    devices: Iterable[config.Device],
    cells: Iterable[Cell],
    listen: Listen,
) -> RuntimeConfig:
    spec = ensemble.spec
    return RuntimeConfig(
        name=ensemble.metadata.name,
        members=tuple(plain_member(member, digests[member.name]) for member in spec.members),
        inputs=spec.inputs,
        outputs=spec.outputs,
        combination=spec.combination,
        devices=tuple(devices),
        cells=tuple(config.Cell(device=device.name, member=name, batch_size=size) for device, name, size in cells),
        serving=spec.serving,
        listen=listen,
        predicted_rows_per_second=plan.rate,
    )


def _slot(device: Device, shard: Shard, plan: Plan) -> config.Device:
    """A device as a pod gets it: a core set with the memory that its cells were promised, a GPU with all of its own."""
    slot = plain_device(device)
    if device.kind is DeviceKind.CPU:
        promised = sum(cell_bytes(cell, plan) for cell in shard.cells if cell[0].name == device.name)
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
