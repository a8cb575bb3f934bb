"""Whose turn it is on a device that runs one batch at a time.

An answer needs every member, so a device serves the member that is furthest behind: taking turns would spend the same
time on each member of a device, whatever the plan wants, and fill up with the small batches of those that keep up.
"""

from __future__ import annotations

import fcntl
import time

from ensemble_runtime.pipeline.arena import READY, Arena
from ensemble_runtime.pipeline.intake import Intake

_HAND_OVER = 0.0002
"""Seconds in which a process that waits for the device takes it, once it is given way to."""
_DECLINED = 2
"""So often in a row it gives way to nobody, then it goes first itself: who is behind may be dead, or slow to wake."""


def shared(arena: Arena, cell: int) -> bool:
    """Whether other processes have cells on this cell's device."""
    cells, own = arena.config.cells, arena.geometry.processes[arena.geometry.process_of(cell)]
    return any(other.device == cells[cell].device for i, other in enumerate(cells) if i not in own)


class Turn:
    """A cell's turns on its device: a record lock on the arena's file, which ends with its holder."""

    def __init__(self, arena: Arena, device: int, cell: int) -> None:
        config = arena.config
        name = config.devices[device].name
        self._arena = arena
        self._process = arena.geometry.process_of(cell)
        self._own = Intake(arena, cell)
        self._others = {
            other: Intake(arena, other)
            for other, found in enumerate(config.cells)
            if found.device == name and other not in arena.geometry.processes[self._process]
        }
        self._position = len(config.members) + device  # the locks of the members' queues come first

    def __enter__(self) -> None:
        idle, process = self._arena.idle, self._process
        self._lock()
        declined = 0
        while declined < _DECLINED and self._others_are_behind():
            done = self._done_by_others()
            idle[process] = 0  # its device is another's: the member's cells elsewhere need leave nothing for it
            fcntl.lockf(self._arena.fd, fcntl.LOCK_UN, 1, self._position)
            time.sleep(_HAND_OVER)
            self._lock()
            declined = declined + 1 if self._done_by_others() == done else 0
        idle[process] = 1

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._arena.fd, fcntl.LOCK_UN, 1, self._position)

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._arena.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._position)
        except OSError:  # another process computes on it, so that this one cannot take any work
            self._arena.idle[self._process] = 0
            fcntl.lockf(self._arena.fd, fcntl.LOCK_EX, 1, self._position)
            self._arena.idle[self._process] = 1

    def _done_by_others(self) -> int:
        """Batches that the device's other processes have computed."""
        return sum(int(self._arena.counters[other, 0]) for other in self._others)

    def _others_are_behind(self) -> bool:
        waiting = self._own.waiting_rows()
        ready = [intake for other, intake in self._others.items() if self._arena.state[other] == READY]
        return any(intake.waiting_rows() > waiting for intake in ready)
