"""Whose turn it is on a device that runs one batch at a time.

An answer needs every member, so a device serves the member that is furthest behind: taking turns would spend the same
time on each member of a device, whatever the plan wants, and fill up with the small batches of those that keep up.

The device is a record lock on the arena's file, which ends with its holder. Who lets go of it wakes the one process
that is furthest behind, and no other: on cores that others compute on, each that wakes for nothing comes dear.
"""

from __future__ import annotations

import fcntl

from ensemble_runtime.pipeline.arena import READY, Arena
from ensemble_runtime.pipeline.intake import Intake
from ensemble_runtime.pipeline.wiring import Wiring, ring, sleep_until_rung_or

_PATIENCE = 0.1
"""Seconds after which a process that nobody has woken tries for itself: who was to do so may be dead, or hang."""


def shared(arena: Arena, cell: int) -> bool:
    """Whether other processes have cells on this cell's device."""
    cells, own = arena.config.cells, arena.geometry.processes[arena.geometry.process_of(cell)]
    return any(other.device == cells[cell].device for i, other in enumerate(cells) if i not in own)


class Turn:
    """A cell's turns on its device."""

    def __init__(self, arena: Arena, wiring: Wiring, device: int, cell: int) -> None:
        config = arena.config
        name = config.devices[device].name
        self._arena = arena
        self._wiring = wiring
        self._process = arena.geometry.process_of(cell)
        self._own = Intake(arena, cell)
        self._others = [
            (other, arena.geometry.process_of(other), Intake(arena, other))
            for other, found in enumerate(config.cells)
            if found.device == name and other not in arena.geometry.processes[self._process]
        ]
        self._position = len(config.members) + device  # the locks of the members' queues come first
        self._gave_way = False

    def __enter__(self) -> None:
        idle, process = self._arena.idle, self._process
        waiting, courteous = self._gave_way, True
        while waiting or not self._take(courteous):
            idle[process] = 0  # its device is another's: the member's cells elsewhere need leave nothing for it
            sleep_until_rung_or(_PATIENCE, self._wiring.turns[process])
            waiting = courteous = False  # whoever rang has looked who is furthest behind
        idle[process] = 1

    def __exit__(self, *_: object) -> None:
        self._let_go()
        self._gave_way = self.pass_on()

    def pass_on(self) -> bool:
        """Wake the process that is furthest behind on the device, if it is further behind than this one.

        Call it before this process sleeps for lack of work, too: others may have given way to it.
        """
        behind = self._furthest_behind()
        if behind is not None:
            self._wake(behind)
        return behind is not None

    def _take(self, courteous: bool) -> bool:
        try:
            fcntl.lockf(self._arena.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._position)
        except OSError:  # another process computes on it
            return False
        if courteous and (behind := self._furthest_behind()) is not None:
            self._let_go()  # first: whoever is woken while the device is taken sleeps on
            self._wake(behind)
            return False
        return True

    def _let_go(self) -> None:
        fcntl.lockf(self._arena.fd, fcntl.LOCK_UN, 1, self._position)

    def _furthest_behind(self) -> int | None:
        most, furthest = self._own.waiting_rows(), None
        for other, process, intake in self._others:
            rows = intake.waiting_rows()
            if rows > most and self._arena.state[other] == READY:
                most, furthest = rows, process
        return furthest

    def _wake(self, process: int) -> None:
        ring(self._wiring.turns[process])
        if self._arena.idle[process]:  # it sleeps for lack of work: other cells of its member were woken for this
            ring(self._wiring.workers[process])
