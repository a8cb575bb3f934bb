"""One device as the planner sees it, whatever source told of it."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_runtime.config import DeviceKind


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU (or a share of one), a set of CPU cores, or a simulated device.

    `memory_bytes` is what members may use: reserves are already taken off. `type` is what profiles are keyed by;
    devices of one type on one node are interchangeable.
    """

    name: str
    node: str
    kind: DeviceKind
    type: str
    memory_bytes: int
    cores: tuple[int, ...] = ()
    uuid: str | None = None
    source: str = "local"
    driver: str | None = None
    """The DRA driver that publishes it, so that it can be claimed by its UUID."""
