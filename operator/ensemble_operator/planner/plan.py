"""The planner's answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.problem import Problem


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation matrix with what it promises. Rows and columns are in the problem's order."""

    problem: Problem
    matrix: tuple[tuple[int, ...], ...]
    """Devices x members: the cell's batch size; 0 = no worker."""
    shares: tuple[tuple[float, ...], ...]
    """Devices x members: the share of its time that the cell is busy at full rate."""
    work: tuple[tuple[float, ...], ...]
    """Devices x members: the share of the member's rows that the cell takes; each column sums to 1."""
    rate: float
    """Rows per second that every member sustains."""
    bound: float
    """No matrix whatever has a higher rate."""
    baseline_rate: float
    """The rate with one worker a member, where packing puts it, at the best batch sizes."""
    bottleneck: str
    """Name of the device whose time is worth the most: the place to add hardware first."""
    bottleneck_member: str
    """Name of the member that takes the largest part of the time per row, at the prices of the devices' time."""
    p99_seconds: float | None = None
    """Predicted p99 at the objective's rate (for Goodput: at `goodput`); None where the objective has no latency in
    it."""
    goodput: float | None = None
    """Goodput only: the arrival rate, rows per second, up to which p99 stays under the objective's."""
    fewest_devices: int | None = None
    """FewestDevices only: no plan meets the rate with fewer."""

    @property
    def gap(self) -> float:
        """How far from the best the rate can be at the most, as a fraction of the bound."""
        return max(0.0, 1.0 - self.rate / self.bound)

    @property
    def gain(self) -> float:
        """The rate over the baseline's."""
        return self.rate / self.baseline_rate

    @property
    def cells(self) -> tuple[tuple[Device, str, int], ...]:
        """(device, member, batch size) of every worker, in the order of the matrix."""
        return tuple(
            (device, member.name, batch)
            for device, row in zip(self.problem.devices, self.matrix, strict=True)
            for member, batch in zip(self.problem.members, row, strict=True)
            if batch
        )

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that it uses, as the inventory has them; of a pair both where a partitioned cell uses both."""
        found: dict[tuple[str, str], Device] = {}
        for device, member, _ in self.cells:
            key, second = (device.node, device.name), self.second(device, member)
            pair = self.problem.companions.get(key)
            plain = device.type.removesuffix(f":{pair.type}") if pair else device.type
            found.setdefault(key, dataclasses.replace(device, type=plain))
            if second is not None:
                found[second.node, second.name] = second
        return tuple(found.values())

    def second(self, device: Device, member: str) -> Device | None:
        """The cores that a member's cell on a device uses as well; None unless it is partitioned."""
        return self.problem.companions.get((device.node, device.name)) if member in self.problem.split else None

    @property
    def digest(self) -> str:
        """Hash of who runs where at which batch size, 16 hexadecimal digits; prediction and order play no part.

        A GPU is told by its UUID where that is known: under its name there may be another one tomorrow.
        """
        cells = sorted(
            (
                device.node,
                device.uuid or device.name,
                member,
                batch,
                *([second.name] if (second := self.second(device, member)) else []),
            )
            for device, member, batch in self.cells
        )
        return hashlib.sha256(json.dumps(cells, separators=(",", ":")).encode()).hexdigest()[:16]

    def document(self) -> dict[str, Any]:
        """The plan as plain data, rates in rows per second, for `-o json` and status."""
        figures = {
            "rate": self.rate,
            "bound": self.bound,
            "gap": self.gap,
            "baselineRate": self.baseline_rate,
            "gain": self.gain,
            "p99Seconds": self.p99_seconds,
            "goodput": self.goodput,
            "fewestDevices": self.fewest_devices,
        }
        return {
            "digest": self.digest,
            **{name: _round(value) for name, value in figures.items() if value is not None},
            "bottleneck": {"device": self.bottleneck, "member": self.bottleneck_member},
            "members": [m.name for m in self.problem.members],
            "devices": [
                {
                    "node": d.node,
                    "name": d.name,
                    "type": d.type,
                    "batches": list(row),
                    "shares": [_round(s) for s in busy],
                }
                for d, row, busy in zip(self.problem.devices, self.matrix, self.shares, strict=True)
            ],
        }

    def canonical_json(self) -> str:
        """The document as text, byte for byte the same for the same plan."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))


def _round(value: float) -> float:
    return float(f"{value:.9g}")
