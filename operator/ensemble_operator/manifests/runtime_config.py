"""From a plan to the configuration of the runtime that serves it."""

from __future__ import annotations

from collections.abc import Mapping

from ensemble_operator.api.ensemble import InferenceEnsemble, MemberSpec
from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.plan import Plan
from ensemble_runtime import config
from ensemble_runtime.config import Cell, DeviceKind, Listen, Member, RuntimeConfig


def runtime_config(
    ensemble: InferenceEnsemble, digests: Mapping[str, str], plan: Plan, listen: Listen
) -> RuntimeConfig:
    """The configuration of the one runtime that serves the whole plan.

    Args:
        ensemble: What is to be served.
        digests: Model digest of each member: what was profiled is pinned, so that nothing else is served.
        plan: Who runs where; devices without a cell are left out.
        listen: The address to serve on.
    """
    spec = ensemble.spec
    used = {device.name: device for device, _, _ in plan.cells}
    return RuntimeConfig(
        name=ensemble.metadata.name,
        members=tuple(plain_member(member, digests[member.name]) for member in spec.members),
        inputs=spec.inputs,
        outputs=spec.outputs,
        combination=spec.combination,
        devices=tuple(_device(device, plan) for device in used.values()),
        cells=tuple(Cell(device=device.name, member=name, batch_size=size) for device, name, size in plan.cells),
        serving=spec.serving,
        listen=listen,
        predicted_rows_per_second=plan.rate,
    )


def plain_member(member: MemberSpec, digest: str) -> Member:
    """A member as the runtime knows it, pinned to a digest."""
    return Member(
        name=member.name,
        model=member.model.model_copy(update={"sha256": digest}),
        weight=member.weight,
        precision=member.precision,
        shadow=member.shadow,
    )


def plain_device(device: Device, seconds: dict[str, dict[int, float]] | None = None) -> config.Device:
    """A device as the runtime knows it; `seconds` are the stated costs of a simulated one."""
    return config.Device(
        name=device.name,
        kind=device.kind,
        type=device.type,
        memory_bytes=device.memory_bytes,
        cores=device.cores,
        uuid=device.uuid,
        seconds=seconds or {},
    )


def _device(device: Device, plan: Plan) -> config.Device:
    return plain_device(device, _stated_seconds(device, plan) if device.kind is DeviceKind.SIMULATED else None)


def _stated_seconds(device: Device, plan: Plan) -> dict[str, dict[int, float]]:
    """What each member of a simulated device costs, at every batch size that is known."""
    present = {name for placed, name, _ in plan.cells if placed.name == device.name}
    return {
        member.name: {point.batch_size: point.seconds for point in member.profiles[device.type].points}
        for member in plan.problem.members
        if member.name in present
    }
