"""How a lane to a remote takes work: like any cell, and for members that go together the same entries for each."""

from __future__ import annotations

import numpy as np

from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.intake import Entries, Intake, MemberLock


class LaneIntake(Intake):
    """One cell's side of its member's queues."""

    def __init__(self, arena: Arena, cell: int) -> None:
        super().__init__(arena, cell)
        self._lock = MemberLock(arena, self.member, cell)

    def take_these(self, wanted: Entries) -> bool:
        """Take exactly these entries, if they are what comes first; returns whether they were."""
        with self._lock:
            for index, ring in enumerate(self._rings):
                if waiting := len(ring):
                    if waiting < len(wanted) or not np.array_equal(ring.peek(len(wanted)), wanted):
                        return False
                    self._claim(index, ring, wanted)
                    return True
        return False
