"""Simulated devices: the time that a batch takes, from the seconds stated in the configuration."""

from __future__ import annotations

from bisect import bisect_left

from ensemble_runtime.config import Device
from ensemble_runtime.errors import ManifestError


class SimulatedClock:
    """How long a member's batches take on a simulated device.

    Linear between the stated points. Beyond the last point the last slope goes on, never downhill. Below the first
    point its time holds: what a batch of the smallest measured size costs is mostly fixed. Never falls while the points
    do not.
    """

    def __init__(self, device: Device, member: str) -> None:
        points = sorted(device.seconds.get(member, {}).items())
        if not points:
            raise ManifestError(
                f"devices[{device.name}].seconds: no point for member '{member}'; expected batch size: seconds"
            )
        for size, seconds in points:
            if size < 1 or not 0 <= seconds < float("inf"):
                raise ManifestError(
                    f"devices[{device.name}].seconds.{member}: {size}: {seconds} is no batch size with its seconds"
                )
        self._sizes = [size for size, _ in points]
        self._seconds = [seconds for _, seconds in points]

    def seconds(self, batch: int) -> float:
        """Seconds of one batch of so many rows."""
        sizes, seconds = self._sizes, self._seconds
        if batch <= sizes[0] or len(sizes) == 1:
            return seconds[0] * max(1.0, batch / sizes[0])
        right = min(bisect_left(sizes, batch), len(sizes) - 1)
        slope = (seconds[right] - seconds[right - 1]) / (sizes[right] - sizes[right - 1])
        if batch > sizes[-1]:
            return seconds[-1] + max(0.0, slope) * (batch - sizes[-1])
        return seconds[right - 1] + slope * (batch - sizes[right - 1])
