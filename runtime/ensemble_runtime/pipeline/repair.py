"""Putting the arena right after a process has died."""

from __future__ import annotations

import logging

import numpy as np

from ensemble_runtime.pipeline.arena import ACTIVE, ANSWERED, CANCELLED, DIED, READY, SKIPPED, Arena, Ring
from ensemble_runtime.pipeline.intake import AGAIN, Entries, MemberLock, in_hand, recover
from ensemble_runtime.pipeline.wiring import Wiring, ring

log = logging.getLogger(__name__)

_ATTEMPTS = 2


def give_back(arena: Arena, wiring: Wiring, cell: int) -> None:
    """Queue again what a dead cell had in hand; what has died with a process twice has failed."""
    config = arena.config
    name = config.cells[cell].member
    member = config.member_of(cell)
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


def put_down_abandoned(arena: Arena, wiring: Wiring, member: int) -> bool:
    """Account for entries of a member without a worker that nobody waits for: they would hold their rows for nothing.

    Returns:
        Whether the member has no worker.
    """
    nobody = len(arena.config.cells)
    cells = arena.config.cells_of(arena.config.members[member].name)
    if any(arena.state[cell] == READY for cell in cells):
        return False
    if not any(len(queue) for queue in arena.queues[member]):
        return True
    with MemberLock(arena, member, nobody):  # in which a cell becomes ready, too
        if any(arena.state[cell] == READY for cell in cells):
            return False
        abandoned = [_put_down(arena, queue) for queue in arena.queues[member]]
        entries = np.concatenate(abandoned)
        entries[:, 3] = SKIPPED | member << 16
        arena.reports[nobody].push(entries.tobytes())
    if len(entries):
        ring(wiring.combiner)
    return True


def _put_down(arena: Arena, queue: Ring) -> Entries:
    """Take the entries of requests that are answered or given up out of a queue that no cell takes from."""
    tail = queue.tail
    entries = queue.peek(tail - queue.head).copy()
    slots = entries[:, 0]
    over = (arena.phase[slots] == ANSWERED) | ((arena.flags[slots] & CANCELLED) != 0)
    kept = entries[~over]
    abandoned: Entries = entries[over]
    # The gateway appends behind the tail meanwhile, so what is kept moves towards it.
    places = np.arange(tail - len(kept), tail) % len(queue.table)
    queue.table[places] = kept
    queue.head = tail - len(kept)
    return abandoned


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
