"""What became of a request that was not answered by all, in words: which members are missing, and why."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.pipeline.arena import ARRIVED, MISSHAPEN, RAISED, REASONS, UNREACHED, Arena
from ensemble_runtime.pipeline.judging import DONE_PARTIAL, TIMED_OUT
from ensemble_runtime.pipeline.leases import RowLease
from ensemble_runtime.pipeline.port import Outcome, Verdict

_EXPLAINED = (RAISED, MISSHAPEN, UNREACHED)
"""Codes for which the cell says what happened."""


class Outcomes:
    """Reads them from the arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._config = config = arena.config
        self._names = [member.name for member in config.members]
        self._combined = [i for i, member in enumerate(config.members) if not member.shadow]

    def of(self, lease: RowLease, verdict: int) -> Outcome:
        """The outcome of a request of which the combiner says this, or the clock."""
        status = self._arena.status[:, lease.base : lease.base + lease.rows]
        combined = self._combined if lease.asked is None else lease.asked
        if verdict == DONE_PARTIAL:
            used = self._arena.used[lease.slot]
            missing = [m for m in combined if not used[m]]
            return Outcome(Verdict.PARTIAL, {self._names[m]: self._reason(m, status[m]) for m in missing})
        late = verdict == TIMED_OUT
        missing = [m for m in combined if ((status[m] != ARRIVED) if late else (status[m] > ARRIVED)).any()]
        reasons = {self._names[m]: self._reason(m, status[m]) for m in missing}
        if not reasons:  # every member has answered, and their combination failed
            reason = f"{REASONS[RAISED]} ({self._arena.combiner_error.get()})"
            reasons = {"combination": REASONS[0] if late else reason}
        return Outcome(Verdict.TIMED_OUT if late else Verdict.MEMBER_FAILED, reasons)

    def _reason(self, member: int, status: NDArray[np.uint8]) -> str:
        code = int(status.max()) if (status > ARRIVED).any() else 0
        reason = REASONS[code]
        texts = [self._arena.errors[cell].get() for cell in self._config.cells_of(self._names[member])]
        detail = next((text for text in texts if text), "") if code in _EXPLAINED else ""
        return f"{reason} ({detail})" if detail else reason
