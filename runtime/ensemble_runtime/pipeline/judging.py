"""Single requests: which are answered, by which members, which have failed, and which are waited for.

Whatever the combiner does not do for whole batches at once ends here: requests that a failure or a deadline has
touched, rules that need more than one look, and a combiner's beginning where another ended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from struct import Struct

import numpy as np

from ensemble_runtime.members.checks import first_line
from ensemble_runtime.pipeline.arena import ACTIVE, ANSWERED, ARRIVED, DISAGREE, MISSHAPEN, Arena
from ensemble_runtime.pipeline.folding import Folding

log = logging.getLogger(__name__)

# Operations of the control ring: the gateway gave up on a request; its quorum deadline has passed.
CANCEL, EXPIRE = range(1, 3)

# Completions are (slot, generation, verdict, whether every dispatched row is accounted for). The last verdict is the
# gateway's own: it watches the clock.
NOTHING, DONE, DONE_PARTIAL, DONE_FAILED, TIMED_OUT = range(5)

_RECORD = Struct("<IIII")


class Judge:
    """Decides on requests one by one, and knows those that are not as most are."""

    def __init__(self, arena: Arena, folding: Folding, combined: Sequence[int]) -> None:
        """`combined`: the members that enter the answer."""
        self._arena = arena
        self._config = arena.config
        self._folding = folding
        self._combined = combined
        self.folded = np.zeros(arena.geometry.rows, np.uint16)
        """How many members each row has been folded from; not kept for requests of one row."""
        self.closed = np.zeros(arena.geometry.slots, np.bool_)
        """Requests that are answered while some of their rows are still with a cell."""
        self.closures = 0
        self.irregular: set[int] = set()
        """Requests that a failure or a deadline has touched: they are judged one by one."""
        self._expired: set[int] = set()
        self.completions: list[bytes] = []
        """What the gateway has to be told."""

    def adopt(self, slot: int) -> None:
        """Take up a request where the last combiner left it, while the gateway goes on writing the request table."""
        arena = self._arena
        generation = int(arena.generation[slot])
        active = arena.flags[slot] & ACTIVE
        status = arena.status[:, self.rows(slot)]
        remaining = np.count_nonzero(status[self._combined] == 0)
        shadowed = np.count_nonzero(status == 0) - remaining
        answered = arena.phase[slot] == ANSWERED
        if not active or arena.generation[slot] != generation:
            return  # it has ended meanwhile, and what was read may be of two requests
        if answered and not remaining and not shadowed:
            # Perhaps the gateway has not been told yet; perhaps it has, and gives the slot away at any moment.
            self.completions.append(_RECORD.pack(slot, generation, NOTHING, True))
            return
        # Nobody but this process can end it from here on.
        arena.remaining[slot], arena.shadowed[slot] = remaining, shadowed
        if answered:
            self.closed[slot] = True
            self.closures += 1
        else:
            self.irregular.add(slot)
            self.decide(slot)

    def decide(self, slot: int) -> None:
        """Decide on one request: answered, failed, or still waiting for somebody."""
        arena = self._arena
        status = arena.status[:, self.rows(slot)]
        arrived = [m for m in self._combined if (status[m] == ARRIVED).all()]
        failed = [m for m in self._combined if (status[m] > ARRIVED).any()]
        alike = arrived if self._folding.fixed or self._config.shard else self._alike(slot, arrived)
        needed = int(arena.min_members[slot])
        pending = len(self._combined) - len(arrived) - len(failed)
        if not pending or (slot in self._expired and len(alike) >= needed):
            status[[m for m in arrived if m not in alike]] = MISSHAPEN
            if len(alike) >= needed:
                self._answer(slot, alike)
            else:
                self._close(slot, DONE_FAILED)
        elif len(arrived) + pending < needed:
            self._close(slot, DONE_FAILED)

    def settle(self, slot: int) -> None:
        """Tell the gateway when the last row of a closed request is accounted for."""
        if self._accounted_for(slot):
            self.closed[slot] = False
            self.closures -= 1
            self._tell(slot, NOTHING, True)

    def obey(self, slot: int, generation: int, operation: int) -> None:
        """Do what the gateway asks for by a control."""
        arena = self._arena
        # A request that ended meanwhile has another generation, or nothing outstanding, or is closed.
        if arena.generation[slot] != generation or self._accounted_for(slot) or self.closed[slot]:
            return
        if operation == EXPIRE:
            self.irregular.add(slot)
            self._expired.add(slot)
            self.decide(slot)
        else:
            self._close(slot, NOTHING)

    def rows(self, slot: int) -> slice:
        """The rows of a request."""
        base = int(self._arena.base[slot])
        return slice(base, base + int(self._arena.row_count[slot]))

    def _alike(self, slot: int, arrived: list[int]) -> list[int]:
        """Of members whose rows may have any shape, those that most agree with."""
        shapes = [self._arena.output_shapes[slot, m].tobytes() for m in arrived]
        return [m for m, shape in zip(arrived, shapes, strict=True) if shape == max(shapes, key=shapes.count)]

    def _answer(self, slot: int, arrived: list[int]) -> None:
        """Combine a request anew from its members' rows, whatever was folded before."""
        arena = self._arena
        try:
            self._folding.combine(slot, arrived)
        except Exception as error:
            arena.combiner_error.set(first_line(error))
            log.error("combination failed", extra={"error": first_line(error)})
            self._close(slot, DONE_FAILED)
            return
        if arena.flags[slot] & DISAGREE:
            self._folding.disagree(slot, arrived)
        arena.used[slot] = 0
        arena.used[slot, arrived] = 1
        self._close(slot, DONE if len(arrived) == len(self._combined) else DONE_PARTIAL)

    def _close(self, slot: int, verdict: int) -> None:
        """End a request, and forget what was folded of it."""
        self.folded[self.rows(slot)] = 0
        self.irregular.discard(slot)
        self._expired.discard(slot)
        settled = self._accounted_for(slot)
        if not settled:
            self.closed[slot] = True
            self.closures += 1
        self._tell(slot, verdict, settled)

    def _accounted_for(self, slot: int) -> bool:
        return not self._arena.remaining[slot] and not self._arena.shadowed[slot]

    def _tell(self, slot: int, verdict: int, settled: bool) -> None:
        self.completions.append(_RECORD.pack(slot, self._arena.generation[slot], verdict, settled))
