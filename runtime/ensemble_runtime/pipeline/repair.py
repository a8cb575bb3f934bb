"""Putting the arena right after a process has died."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.pipeline.arena import ACTIVE, ANSWERED, CANCELLED, DIED, READY, SKIPPED, Arena, Ring
from ensemble_runtime.pipeline.entries import segments
from ensemble_runtime.pipeline.intake import AGAIN, Entries, MemberLock, recover
from ensemble_runtime.pipeline.wiring import Wiring, ring

log = logging.getLogger(__name__)

_ATTEMPTS = 2
_HALF = 2**31
"""Of two generations the one that is less than so many behind is the later one: they go around."""


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


def disown(arena: Arena, wiring: Wiring) -> None:
    """The requests of a gateway that has died are nobody's: cells put down what they have not begun.

    Their rows stay taken until every cell has reported; the next gateway gives them back then, as it does with those of
    a client that has gone. Call it while neither gateway nor combiner runs: a new combiner finds out what is missing.
    """
    active = np.flatnonzero(arena.flags & ACTIVE)
    arena.flags[active] |= CANCELLED
    arena.phase[active] = ANSWERED
    _send_the_rest(arena, active)
    for ring_ in (arena.controls, arena.completions):
        ring_.head = ring_.tail
    for doorbell in wiring.workers:
        ring(doorbell)


def _send_the_rest(arena: Arena, active: NDArray[np.intp]) -> None:
    """Queue what the gateway was about to when it died: else its rows would be waited for in vain."""
    first, queue, *tails = arena.sending
    being_sent = active[arena.generation[active] - np.uint32(first) < _HALF]
    requests = [(slot, int(arena.base[slot]), int(arena.row_count[slot])) for slot in being_sent.tolist()]
    for member, tail in enumerate(tails):
        ring_ = arena.queues[member][queue]
        if ring_.tail != tail:
            ring_.push(segments(requests, arena.geometry.segments[member]))
            arena.sending[2 + member] = ring_.tail
