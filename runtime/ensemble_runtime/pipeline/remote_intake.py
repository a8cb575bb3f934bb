"""How a lane to a remote takes work: like any cell, and for members that go together the same entries for each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ensemble_runtime.pipeline.arena import Ring
from ensemble_runtime.pipeline.intake import Entries, Intake, clear


class LaneIntake(Intake):
    """One cell's side of its member's queues."""

    @property
    def ring(self) -> Ring:
        """Where the lane reports."""
        return self._reports

    def put_down(self) -> None:
        """Nothing is in hand any more."""
        clear(self._journal)

    def take_these(self, wanted: Entries) -> bool:
        """Take exactly these entries, if they are what comes first; returns whether they were."""
        with self._lock:
            for index, ring in enumerate(self._rings):
                if waiting := len(ring):
                    if waiting < len(wanted) or not np.array_equal(ring.peek(len(wanted)), wanted):
                        return False
                    self._claim(index, ring, len(wanted))
                    return True
        return False


def report_together(taken: Mapping[LaneIntake, Entries]) -> None:
    """Publish what became of all that the cells of one lane had in hand, so that it is seen at once or not at all."""
    named = []
    for intake, entries in taken.items():
        entries[:, 3] |= np.uint32(intake.member << 16)
        named.append(entries)
    ring = next(iter(taken)).ring
    ring.push(np.concatenate(named).tobytes())
    for intake in taken:
        intake.put_down()
