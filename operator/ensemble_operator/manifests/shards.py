"""The parts of a plan that run in one pod each: one for every node."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.labels import Cell
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import DeviceKind


@dataclass(frozen=True, slots=True)
class Shard:
    """What one pod of a copy holds and runs."""

    index: int
    node: str
    devices: tuple[Device, ...]
    """With a cell each, or beside the device of a partitioned one; by name, numbers in them by value: the pod's slots
    are in this order."""
    cells: tuple[Cell, ...]

    @property
    def head(self) -> bool:
        """Whether it serves; the others answer to it."""
        return self.index == 0

    def of(self, kind: DeviceKind) -> tuple[Device, ...]:
        """Its devices of one kind."""
        return tuple(device for device in self.devices if device.kind is kind)


def shards(plan: Plan) -> tuple[Shard, ...]:
    """The shards of a copy; the first, with the most cells (then by name of the node), is the head."""
    by_node: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        by_node.setdefault(cell[0].node, []).append(cell)
    ordered = sorted(by_node.items(), key=lambda item: (-len(item[1]), item[0]))
    devices = sorted(plan.devices, key=lambda device: _by_number(device.name))
    return tuple(
        Shard(index, node, tuple(device for device in devices if device.node == node), tuple(cells))
        for index, (node, cells) in enumerate(ordered)
    )


def _by_number(name: str) -> tuple[tuple[str, int], ...]:
    return tuple((text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name))
