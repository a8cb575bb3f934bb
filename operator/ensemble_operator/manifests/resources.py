"""What a pod asks of its node: whole devices, and the memory that goes with them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ensemble_operator.inventory.labels import resource_of
from ensemble_operator.manifests.labels import Cell
from ensemble_operator.manifests.shards import Shard
from ensemble_operator.planner.plan import Plan
from ensemble_operator.profiles.profile import Point
from ensemble_runtime.config import DeviceKind, RuntimeConfig, core_count
from ensemble_runtime.sizes import GPU_CELL_BYTES, shared_memory_bound

MIB = 2**20
PROCESSES_BYTES = 512 * MIB
"""Supervisor, gateway and combiner, and the libraries that cells on CPUs share with them."""
TORCH_BYTES = 512 * MIB
"""What torch adds to those libraries."""
SIMULATED_CELL_BYTES = 64 * MIB
CONNECTION_BYTES = 64 * MIB
"""Of a head, for each connection to another shard: the batches on their way."""
GPU_MILLIS = 500
"""Thousandths of a core beside each GPU of a pod without CPU devices, and for a pod with simulated ones alone."""
GPU_BESIDE_MILLIS = 1000
"""The same in a pod with CPU devices: its cores are its own, so they are whole."""
_GATHER_BODIES = 2
"""Bodies that wait outside the arena, in largest ones."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests of a pod's one container."""

    cpu_millis: int
    memory_bytes: int
    shared_memory_bytes: int
    """Part of the memory."""
    gpus: tuple[tuple[str, int], ...]
    """Extended resource and count of anonymous GPUs."""
    exclusive: bool
    """Whether the cores are the pod's own: requests are limits, in whole cores, so that the kubelet can pin them."""
    memory_limited: bool = True
    """False where nobody knows yet what will be needed."""

    def without_gpus(self) -> Resources:
        """The same for a container that only fetches."""
        return replace(self, gpus=())

    def container(self) -> dict[str, Any]:
        """As a container spells it."""
        memory = {"memory": binary(self.memory_bytes)}
        cpu = {"cpu": quantity(self.cpu_millis)}
        gpus = {name: str(count) for name, count in self.gpus}
        limits = (cpu if self.exclusive else {}) | (memory if self.memory_limited else {}) | gpus
        return {"requests": cpu | memory | gpus} | ({"limits": limits} if limits else {})


def resources(shard: Shard, plan: Plan, config: RuntimeConfig, *, torch: bool) -> Resources:
    """What the pod of a shard asks for.

    Args:
        shard: The devices and cells.
        plan: Whose profiles tell the cells' memory.
        config: Of this shard; the arena follows from it.
        torch: Whether the image has torch in it.
    """
    cores = sum(core_count(device.type) for device in shard.of(DeviceKind.CPU))
    gpus = shard.of(DeviceKind.GPU)
    shared = _whole_mib(shared_memory_bound(config)) + MIB
    cells = sum(host_bytes(cell, plan) for cell in shard.cells)
    connections = CONNECTION_BYTES * sum(remote.connections for remote in config.remotes)
    bodies = _GATHER_BODIES * config.serving.max_body_mib * MIB
    own = PROCESSES_BYTES + (TORCH_BYTES if torch else 0)
    anonymous = Counter(resource_of(device) for device in gpus if device.driver is None)
    return Resources(
        cpu_millis=1000 * cores + GPU_BESIDE_MILLIS * len(gpus) if cores else GPU_MILLIS * max(1, len(gpus)),
        memory_bytes=_whole_mib(own + cells + connections + bodies + shared),
        shared_memory_bytes=shared,
        gpus=tuple(sorted(anonymous.items())),
        exclusive=bool(cores),
    )


def cell_bytes(cell: Cell, plan: Plan) -> int:
    """What a cell takes of its device, as it was profiled at its batch size."""
    return _point(cell, plan).memory_bytes


def second_bytes(cell: Cell, plan: Plan) -> int:
    """What a partitioned cell takes of the cores beside its device; 0 for others."""
    return _point(cell, plan).second_bytes if plan.second(*cell[:2]) is not None else 0


def _point(cell: Cell, plan: Plan) -> Point:
    device, name, batch = cell
    member = next(member for member in plan.problem.members if member.name == name)
    point = member.profiles[device.type].at(batch)
    assert point is not None  # a plan chooses among points that are known
    return point


def host_bytes(cell: Cell, plan: Plan) -> int:
    """What a cell takes of the node's main memory; weights pass through it on their way to a GPU."""
    match cell[0].kind:
        case DeviceKind.CPU:
            return cell_bytes(cell, plan) + second_bytes(cell, plan)
        case DeviceKind.GPU:
            return GPU_CELL_BYTES + cell_bytes(cell, plan) + second_bytes(cell, plan)
        case DeviceKind.SIMULATED:
            return SIMULATED_CELL_BYTES


def quantity(millis: int) -> str:
    """Thousandths of a core as Kubernetes writes them: 2 or 500m."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def binary(size: int) -> str:
    """Whole MiB as Kubernetes writes them back: 6090Mi or 2Gi."""
    mib = size // MIB
    return f"{mib // 1024}Gi" if mib % 1024 == 0 else f"{mib}Mi"


def _whole_mib(size: int) -> int:
    return math.ceil(size / MIB) * MIB
