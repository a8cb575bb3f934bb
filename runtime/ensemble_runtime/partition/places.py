"""Threads on devices, in which what is measured is computed: one after the other, or all at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Any

from ensemble_runtime.config import Device, DeviceKind


class Place:
    """A thread on a device."""

    def __init__(self, device: Device) -> None:
        """Start it, and bind it if the device is a set of cores."""
        self.device = device
        self._thread = ThreadPoolExecutor(1)
        if device.kind is DeviceKind.CPU and device.cores:  # under a quota it has none of its own
            self.call(os.sched_setaffinity, 0, device.cores).result()

    def call(self, work: Any, *arguments: object) -> Future[Any]:
        """Have the thread do something."""
        return self._thread.submit(work, *arguments)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


def at_once(places: Sequence[Place], measures: Sequence[Callable[[int, Barrier], Any]], rounds: int) -> list[Any]:
    """Have both devices measure at once, round by round."""
    barrier = Barrier(len(places))
    both = [place.call(measure, rounds, barrier) for place, measure in zip(places, measures, strict=True)]
    for future in both:  # whoever fails must not leave the other waiting for the next round
        future.add_done_callback(lambda done: barrier.abort() if done.exception() else None)
    errors = [error for each in both if (error := each.exception())]
    for error in sorted(errors, key=lambda x: isinstance(x, BrokenBarrierError)):  # which only tells of the other's
        raise error
    return [each.result() for each in both]
