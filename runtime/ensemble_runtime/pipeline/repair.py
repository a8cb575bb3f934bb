"""Putting the arena right after a process has died."""

from __future__ import annotations

import logging

import numpy as np

from ensemble_runtime.pipeline.arena import ACTIVE, CANCELLED, DIED, Arena
from ensemble_runtime.pipeline.intake import AGAIN, MemberLock, in_hand, recover
from ensemble_runtime.pipeline.wiring import Wiring, ring

log = logging.getLogger(__name__)

_ATTEMPTS = 2


def give_back(arena: Arena, wiring: Wiring, cell: int) -> None:
    """Queue again what a dead cell had in hand; what has died with a process twice has failed."""
    config = arena.config
    name = config.cells[cell].member
    member = next(i for i, m in enumerate(config.members) if m.name == name)
    nobody = len(config.cells)
    with MemberLock(arena, member, nobody):
        entries = recover(arena, cell)
        entries[:, 3] += 1
        again = entries[entries[:, 3] < _ATTEMPTS]
        arena.queues[member][AGAIN].push(again.tobytes())
    lost = entries[entries[:, 3] >= _ATTEMPTS]
    if len(lost):
        lost[:, 3] = DIED | member << 16
        arena.reports[nobody].push(lost.tobytes())
    # In any case: the cell may have died between its last report and the doorbell.
    ring(wiring.combiner)
    if len(entries):
        log.warning("took back work", extra={"member": name, "again": len(again), "failed": len(lost)})
    for process, cells in enumerate(arena.geometry.processes):
        if set(cells) & set(config.cells_of(name)):
            ring(wiring.workers[process])


def cancel_all(arena: Arena) -> None:
    """Mark every request as given up, so that cells put down what they have not begun."""
    active = np.flatnonzero(arena.flags & ACTIVE)
    arena.flags[active] |= CANCELLED


def quiet(arena: Arena) -> bool:
    """Whether no cell holds anything and nothing waits for one."""
    return not any(len(ring) for queues in arena.queues for ring in queues) and not any(
        in_hand(journal) for journal in arena.journals
    )


def reset(arena: Arena) -> None:
    """An empty request table and empty rings, for a gateway and a combiner that start anew. Call it only when quiet."""
    for table in (arena.flags, arena.phase, arena.status, arena.remaining, arena.shadowed, arena.used):
        table[...] = 0
    for ring_ in (*arena.reports, arena.controls, arena.completions):
        ring_.head = ring_.tail
