"""Batching, inside the gateway's process: leases rows, sends requests to the members' queues, takes the answers.

Requests that arrive in one turn of the event loop are pushed together, with one doorbell a process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.pipeline.arena import (
    ACTIVE,
    ANSWERED,
    CANCELLED,
    DISAGREE,
    ENTRY_BYTES,
    HURRIED,
    INDIVIDUAL,
    OPEN,
    SKIPPED,
    Arena,
)
from ensemble_runtime.pipeline.entries import ENTRY, segments
from ensemble_runtime.pipeline.health import HealthReader, queued_rows
from ensemble_runtime.pipeline.intake import HIGH, NORMAL
from ensemble_runtime.pipeline.judging import CANCEL, DONE, DONE_PARTIAL, EXPIRE, NOTHING, TIMED_OUT
from ensemble_runtime.pipeline.leases import ENDED, WAITING, RowLease, Tensors
from ensemble_runtime.pipeline.outcomes import Outcomes
from ensemble_runtime.pipeline.port import (
    COMPLETE,
    Health,
    Options,
    Outcome,
    OverloadedError,
    RequestTooLargeError,
)
from ensemble_runtime.pipeline.rows import RowAllocator
from ensemble_runtime.pipeline.shadows import Shadows
from ensemble_runtime.pipeline.wiring import Wiring, ring

log = logging.getLogger(__name__)

_RETRY_AFTER = 1.0
_SWEEPS_PER_DEADLINE = 50
_SHADOWS_SHARE = 4
"""A shadow that has a quarter of the pipeline waiting for it is passed by: nobody waits for it."""
_DEAD_COMBINER_GRACE = 1.0
"""Seconds after which a deadline is said again: the combiner that was to hear it may have died."""
_LAST_WORD = 0.05
"""Seconds in which the combiner may still answer for a quorum, where a request's time is over with its deadline."""


class Batcher:
    """The pipeline as the gateway sees it; see `port.Pipeline`."""

    def __init__(self, arena: Arena, wiring: Wiring, loop: asyncio.AbstractEventLoop) -> None:
        self.config: RuntimeConfig = arena.config
        self.max_rows = arena.geometry.rows
        self._arena = arena
        self._wiring = wiring
        self._loop = loop
        geometry, config = arena.geometry, arena.config
        self._tensors = Tensors(arena)
        self._outcomes = Outcomes(arena)
        self._compared = Shadows(arena, self._tensors)
        self._leases: list[RowLease | None] = [None] * geometry.slots
        orphans = self._adopt()
        self._rows = RowAllocator(geometry.rows, [(lease.base, lease.rows) for lease in orphans])
        self._slots = [slot for slot, lease in enumerate(self._leases) if lease is None]
        self.in_flight = len(orphans)
        self._sending = arena.sending
        self._generation = self._sending[0] + geometry.slots  # beyond whatever an earlier gateway has sent
        self._names = [member.name for member in config.members]
        self._combined = [i for i, member in enumerate(config.members) if not member.shadow]
        self._shadows = frozenset(range(len(self._names))).difference(self._combined)
        self._fixed_inputs = all(spec.fixed for spec in config.inputs)
        self._all_outputs_fixed = all(spec.fixed for spec in config.outputs)
        # One word at a time, memoryviews are written twice as fast as numpy arrays.
        self._table = [
            words.data
            for words in (arena.generation, arena.base, arena.row_count, arena.flags, arena.min_members, arena.phase)
        ]
        self._counts = [words.data for words in (arena.remaining, arena.shadowed)]
        self._segment = min(geometry.segments)
        self._processes = [
            [p for p, cells in enumerate(geometry.processes) if set(cells) & set(config.cells_of(name))]
            for name in self._names
        ]
        self._scattered = any(len(processes) > 1 for processes in self._processes)
        self._next = [0] * len(self._names)
        self._pending: list[RowLease] = []
        self._urgent: list[RowLease] = []
        self._timeout = config.serving.timeout_ms / 1000
        quorum = config.serving.quorum
        self._needed = quorum.min_members if quorum else len(self._combined)
        self._health = HealthReader(arena, self._needed)
        self._patience = quorum.deadline_ms / 1000 if quorum else math.inf
        self._timeouts = np.full(geometry.slots, math.inf)
        self._deadlines = np.full(geometry.slots, math.inf)
        self._sweep: asyncio.TimerHandle | None = None
        self._shortest = min(self._timeout, self._patience)
        loop.add_reader(wiring.gateway, self._take_completions)

    def _adopt(self) -> list[RowLease]:
        """What a gateway that died has left: requests whose rows some cell may still touch, for nobody."""
        arena = self._arena
        orphans = []
        for slot in np.flatnonzero(arena.flags & ACTIVE).tolist():
            lease = RowLease(self._tensors, slot, int(arena.base[slot]), int(arena.row_count[slot]), ())
            lease.generation = int(arena.generation[slot])
            lease.state, lease.settled, lease.released = ENDED, False, True
            self._leases[slot] = lease
            orphans.append(lease)
        return orphans

    # -- a request's life ---------------------------------------------------------------------------------------------

    def lease(self, rows: int, shapes: Sequence[tuple[int, ...]]) -> RowLease:
        """See `port.Pipeline.lease`."""
        if rows > self.max_rows:
            raise RequestTooLargeError(f"{rows} rows are more than a request may have, {self.max_rows}")
        if not self._slots:
            raise OverloadedError(f"{self.in_flight} requests are in the pipeline; try again later", _RETRY_AFTER)
        base = self._rows.take(rows)
        if base is None:
            raise OverloadedError(f"no room for {rows} rows: {self._rows.free} are free; try again later", _RETRY_AFTER)
        lease = RowLease(self._tensors, self._slots.pop(), base, rows, shapes)
        self._leases[lease.slot] = lease
        self.in_flight += 1
        return lease

    def submit(self, lease: RowLease, options: Options, done: Callable[[Outcome], None]) -> None:
        """See `port.Pipeline.submit`."""
        slot, rows = lease.slot, lease.rows
        lease.state = WAITING
        lease.settled = False
        lease.done = done
        _, base, row_count, flags, min_members, phase = self._table
        base[slot] = lease.base
        row_count[slot] = rows
        hurried = options.deadline or self._patience < math.inf
        flags[slot] = (
            (DISAGREE if options.disagreement else 0)
            | (INDIVIDUAL if options.individually else 0)
            | (HURRIED if hurried else 0)
        )
        min_members[slot] = min(options.min_members or self._needed, len(self._combined))
        phase[slot] = OPEN
        remaining, shadowed = self._counts
        remaining[slot] = rows * len(self._combined)
        shadowed[slot] = rows * (len(self._names) - len(self._combined))
        if not self._fixed_inputs:
            for i, shape in enumerate(lease.shapes):
                self._arena.input_shapes[slot, i, : len(shape)] = shape
        if not self._all_outputs_fixed:
            self._arena.output_shapes[slot] = 0
        self._watch(slot, options)
        if options.only is not None:
            self._push_to(lease, options.only)
            return
        if not self._pending and not self._urgent:
            self._loop.call_soon(self._flush)
        (self._urgent if options.priority > 0 else self._pending).append(lease)

    def cancel(self, lease: RowLease) -> None:
        """See `port.Pipeline.cancel`."""
        if lease.state == WAITING:
            for queue in (self._pending, self._urgent):
                if lease in queue:
                    queue.remove(lease)
                    lease.settled = True
            self._end(lease)
            if not lease.settled:
                self._table[3][lease.slot] |= CANCELLED
                self._control(lease, CANCEL)
        self.release(lease)

    def release(self, lease: RowLease) -> None:
        """See `port.Pipeline.release`."""
        if lease.released:
            return
        lease.released = True
        if lease.settled:
            self._free(lease)

    def health(self) -> Health:
        """See `port.Pipeline.health`."""
        return replace(self._health.read(), shadows=self._compared.read())

    def _free(self, lease: RowLease) -> None:
        slot = lease.slot
        if lease.answered:
            self._compared.compare(lease)
        self._table[3][slot] = 0
        self._leases[slot] = None
        self._rows.give(lease.base, lease.rows)
        self._slots.append(slot)
        self.in_flight -= 1

    def _end(self, lease: RowLease) -> None:
        lease.state = ENDED
        lease.done = None
        self._table[5][lease.slot] = ANSWERED
        self._timeouts[lease.slot] = self._deadlines[lease.slot] = math.inf

    # -- out to the members -------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if not self._pending and not self._urgent:
            return
        for queue, leases in ((NORMAL, self._pending), (HIGH, self._urgent)):
            if leases:
                self._push(queue, leases)
        self._ring(len(self._pending) + len(self._urgent))
        self._pending, self._urgent = [], []

    def _push(self, queue: int, leases: list[RowLease]) -> None:
        arena = self._arena
        if all(lease.rows <= self._segment for lease in leases):
            blob = b"".join([ENTRY.pack(lease.slot, lease.base, lease.rows, 0) for lease in leases])
            blobs = [blob] * len(self._names)
        else:
            requests = [(lease.slot, lease.base, lease.rows) for lease in leases]
            by_size = {size: segments(requests, size) for size in set(arena.geometry.segments)}
            blobs = [by_size[size] for size in arena.geometry.segments]
        for lease in leases:
            arena.status[:, lease.base : lease.base + lease.rows] = 0
        for member in self._shadows:
            if self._behind(member):
                self._spare(member, leases)
                blobs[member] = b""
        self._send(queue, leases, blobs)

    def _send(self, queue: int, leases: Sequence[RowLease], blobs: Sequence[bytes]) -> None:
        """Queue the members' entries of requests whose part of the request table is written."""
        arena = self._arena
        # First: the supervisor sends the rest for a gateway that dies meanwhile.
        sending, generation = self._sending, self._generation
        sending[0], sending[1] = (generation + 1) & 0xFFFFFFFF, queue
        for member, blob in enumerate(blobs):
            sending[2 + member] = arena.queues[member][queue].tail + len(blob) // ENTRY_BYTES
        generations, flags = self._table[0], self._table[3]
        for lease in leases:
            generation = (generation + 1) & 0xFFFFFFFF
            lease.generation = generations[lease.slot] = generation
            # Last: a combiner that takes over believes what it reads of an active request.
            flags[lease.slot] |= ACTIVE
        self._generation = generation
        for member, blob in enumerate(blobs):
            if blob:
                arena.queues[member][queue].push(blob)

    def _push_to(self, lease: RowLease, names: Sequence[str]) -> None:
        """Send a request to some members, at once: a head has made a batch of it already. The others are skipped."""
        arena, rows = self._arena, slice(lease.base, lease.base + lease.rows)
        lease.asked = asked = [self._names.index(name) for name in names]
        arena.status[:, rows] = SKIPPED
        arena.status[asked, rows] = 0
        self._counts[0][lease.slot] = lease.rows * len(asked)
        request = [(lease.slot, lease.base, lease.rows)]
        self._send(
            NORMAL,
            [lease],
            [segments(request, size) if m in asked else b"" for m, size in enumerate(arena.geometry.segments)],
        )
        self._ring(1)

    def _behind(self, member: int) -> bool:
        """Whether what waits for a shadow would soon take the room that requests need."""
        entries, rows = sum(map(len, self._arena.queues[member])), queued_rows(self._arena, member)
        return entries * _SHADOWS_SHARE > len(self._leases) or rows * _SHADOWS_SHARE > self.max_rows

    def _spare(self, member: int, leases: list[RowLease]) -> None:
        """Let requests pass a shadow by."""
        for lease in leases:
            self._arena.status[member, lease.base : lease.base + lease.rows] = SKIPPED
            self._counts[1][lease.slot] -= lease.rows

    def _ring(self, requests: int) -> None:
        """Wake as many processes of each member as there is work for, idle ones first; at least one in any case."""
        workers = self._wiring.workers
        if not self._scattered:
            for doorbell in workers:
                ring(doorbell)
            return
        idle = self._arena.idle
        rung: set[int] = set()
        for member, processes in enumerate(self._processes):
            waiting = sum(map(len, self._arena.queues[member])) if requests < len(processes) else len(processes)
            wanted = [p for p in processes if idle[p]][: max(waiting, 1)]
            if not wanted:
                self._next[member] = turn = (self._next[member] + 1) % len(processes)
                wanted = [processes[turn]]
            rung.update(wanted)
        for process in rung:
            ring(workers[process])

    # -- back from the combiner ---------------------------------------------------------------------------------------

    def _take_completions(self) -> None:
        try:
            os.read(self._wiring.gateway, 8)
        except BlockingIOError:
            return
        completions = self._arena.completions
        waiting = len(completions)
        for slot, generation, verdict, settled in completions.peek(waiting).tolist():
            lease = self._leases[slot]
            if lease is None or lease.generation != generation:
                continue
            if settled:
                lease.settled = True
            if verdict != NOTHING and lease.state == WAITING:
                self._answer(lease, verdict)
            elif settled and lease.released:
                self._free(lease)
        # Last: to a combiner that takes over, an empty ring says that the request table knows of every answer.
        completions.head += waiting

    def _answer(self, lease: RowLease, verdict: int) -> None:
        done = lease.done
        outcome = COMPLETE if verdict == DONE else self._outcomes.of(lease, verdict)
        self._end(lease)
        lease.answered = verdict in (DONE, DONE_PARTIAL) and len(self._compared) > 0
        if verdict != DONE and not lease.settled:
            # Whoever has not begun on it need not: the answer has left without them.
            self._table[3][lease.slot] |= CANCELLED
        try:
            if done is not None:
                done(outcome)
        except Exception:
            log.exception("an answer could not be delivered")
            self.release(lease)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _watch(self, slot: int, options: Options) -> None:
        """Note a request's deadlines; one timer looks after all of them."""
        arrival = self._loop.time() - options.age
        timeout = options.timeout or self._timeout
        self._timeouts[slot] = arrival + timeout
        patience = options.deadline or self._patience
        if patience < math.inf:
            patience = min(patience, timeout)  # when its time is up, a quorum that is there answers all the same
            self._deadlines[slot] = arrival + patience
        shortest = min(timeout, patience)
        if shortest < self._shortest:
            self._shortest = shortest
            if self._sweep is not None:
                self._sweep.cancel()
                self._sweep = None
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._period(), self._look_at_the_clock)

    def _period(self) -> float:
        return min(0.05, max(0.001, self._shortest / _SWEEPS_PER_DEADLINE))

    def _look_at_the_clock(self) -> None:
        self._sweep = None
        self._flush()  # whoever is told that a request ends must have heard of it
        now = self._loop.time()
        for slot in np.flatnonzero(self._deadlines <= now).tolist():
            self._deadlines[slot] = now + _DEAD_COMBINER_GRACE
            self._control(self._leases[slot], EXPIRE)
            self._timeouts[slot] = max(self._timeouts[slot], now + _LAST_WORD)
        for slot in np.flatnonzero(self._timeouts <= now).tolist():
            if (lease := self._leases[slot]) is not None:
                # Not the combiner's decision: it may be dead, or at work for too long.
                self._control(lease, CANCEL)
                self._answer(lease, TIMED_OUT)
        if not np.isfinite(self._timeouts).any():
            self._shortest = min(self._timeout, self._patience)
        elif self._sweep is None:
            self._sweep = self._loop.call_later(self._period(), self._look_at_the_clock)

    def _control(self, lease: RowLease | None, operation: int) -> None:
        controls = self._arena.controls
        # Full only when the combiner is gone and its successor has not come yet; deadlines are said again.
        if lease is not None and len(controls) < len(controls.table):
            controls.push(ENTRY.pack(lease.slot, lease.generation, operation, 0))
            ring(self._wiring.combiner)
