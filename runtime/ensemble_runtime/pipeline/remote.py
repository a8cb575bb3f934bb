"""A remote's process in the head: hands what waits for members of another shard over to it, and takes their rows back.

To the rest of the pipeline it is a prediction process. Each connection is a lane with a cell for every member, so that
several batches are on their way at once, each in the journals of its own cells. Members that have cells nowhere else
are handed over together: their rows travel once.

A batch that a connection was lost with is sent once more, over a new one. When there is none to be had, the shard's
members have failed, at once and by name, until it is back: nothing waits for a node that may never return.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ensemble_runtime.errors import ManifestError
from ensemble_runtime.pipeline.arena import (
    ARRIVED,
    CANCELLED,
    FAILED,
    LOADING,
    MISSHAPEN,
    READY,
    SKIPPED,
    UNREACHED,
    Arena,
)
from ensemble_runtime.pipeline.intake import Entries, MemberLock
from ensemble_runtime.pipeline.remote_asking import Asking, Job
from ensemble_runtime.pipeline.remote_intake import LaneIntake, report_together
from ensemble_runtime.pipeline.remote_link import Link, LostError
from ensemble_runtime.pipeline.remote_rows import RowDesk
from ensemble_runtime.pipeline.remote_wire import (
    TARGET,
    Answers,
    UnreadableError,
    authorization,
    code_of,
)
from ensemble_runtime.pipeline.wiring import Wiring, ring

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_FULL_PAUSE = 0.02
"""Seconds after which a shard that had no room is asked again."""
_OK, _FULL = 200, 503
_WARM_UP_SECONDS = 5.0
_WARM_UP_LENGTH = 1

REQUESTS, SENT, RECEIVED, LOST = range(4)
"""Words of a remote's counters."""


def hand_over_until_killed(arena: Arena, wiring: Wiring, process: int) -> int:
    """Run one remote's process; does not return.

    Args:
        arena: The ensemble's arena.
        wiring: The doorbells.
        process: Which of the geometry's processes this is.
    """
    hand_over = HandOver(arena, wiring, process)
    while True:
        hand_over.turn()


@dataclass(slots=True)
class _Lane:
    """One connection, and what is on its way over it."""

    cells: dict[int, int]
    """By member, the cell whose journal has it."""
    intakes: dict[int, LaneIntake]
    link: Link | None = None
    taken: dict[int, Entries] = field(default_factory=dict)
    """By member, what it has in hand; the last column becomes the code of each."""
    jobs: deque[Job] = field(default_factory=deque)
    """What it was cut into; the first is on its way."""
    repeated: bool = False
    """Whether that is so for the second time, since a connection was lost."""
    since: float = 0.0
    """When work was taken."""
    ask_at: float = 0.0
    """When to ask a shard again that had no room; 0: its answer is awaited."""


class HandOver:
    """The lanes to one remote."""

    def __init__(self, arena: Arena, wiring: Wiring, process: int) -> None:
        config, cells = arena.config, arena.geometry.processes[process]
        name = config.cells[cells[0]].device
        index = next(i for i, remote in enumerate(config.remotes) if remote.name == name)
        self._arena = arena
        self._process = process
        self._doorbell = wiring.workers[process]
        self._combiner = wiring.combiner
        self._remote = remote = config.remotes[index]
        self._counters = arena.remotes[index]
        self._names = [member.name for member in config.members]
        self._patience = config.serving.timeout_ms / 1000
        self._desk = RowDesk(arena)
        self._asking = Asking(arena, self._desk)
        width = len(cells) // remote.connections
        self._lanes = [self._lane(cells[i : i + width]) for i in range(0, len(cells), width)]
        self._members = tuple(self._lanes[0].cells)
        self._together = [m for m in self._members if self._elsewhere(m) == []]
        self._pause = _FIRST_PAUSE
        self._connect_at = 0.0
        self._trouble = ""
        arena.observed[process].set(remote.url)
        for lane in self._lanes:
            for cell in lane.cells.values():
                arena.state[cell] = LOADING

    def turn(self) -> None:
        """Connect what is not, hand over what waits, sleep until something comes."""
        if time.monotonic() >= self._connect_at:
            self._connect_all()
        for lane in self._lanes:
            if lane.link is not None and not lane.jobs:
                self._hand_over(lane)
        if all(lane.link is None for lane in self._lanes):
            self._give_up_waiting()
        self._sleep()

    def _lane(self, cells: Sequence[int]) -> _Lane:
        intakes = [LaneIntake(self._arena, cell) for cell in cells]
        members = [intake.member for intake in intakes]
        return _Lane(dict(zip(members, cells, strict=True)), dict(zip(members, intakes, strict=True)))

    def _elsewhere(self, member: int) -> list[int]:
        """The member's cells that are not on this remote."""
        config = self._arena.config
        return [c for c in config.cells_of(self._names[member]) if config.cells[c].device != self._remote.name]

    # -- out ----------------------------------------------------------------------------------------------------------

    def _hand_over(self, lane: _Lane) -> None:
        """Take a batch of the member that is furthest behind, and the same of those that go with it."""
        waiting = [m for m in self._members if lane.intakes[m].waiting()]
        if not waiting:
            return
        leader = max(waiting, key=lambda m: lane.intakes[m].waiting_rows())
        count = lane.intakes[leader].take()
        if not count:
            return
        entries = lane.intakes[leader].entries(count)
        followers = [m for m in self._together if m != leader] if leader in self._together else []
        members = (leader, *(m for m in followers if lane.intakes[m].take_these(entries)))
        lane.since = time.monotonic()
        cancelled = (self._arena.flags[entries[:, 0]] & CANCELLED) != 0
        lane.jobs.extend(self._asking.job(members, batch) for batch in self._desk.alike(entries[~cancelled]))
        entries = entries.copy()
        entries[:, 3] = np.where(cancelled, SKIPPED, ARRIVED)
        lane.taken = {member: entries.copy() for member in members}
        self._go_on(lane)

    def _go_on(self, lane: _Lane) -> None:
        """Send the next job, or report when there is none."""
        lane.repeated = False
        if lane.jobs:
            self._send(lane)
        else:
            self._report(lane)

    def _send(self, lane: _Lane) -> None:
        assert lane.link is not None
        job = lane.jobs[0]
        lane.ask_at = 0.0
        try:
            sent = lane.link.send(self._asking.question(job), self._desk.gather(job.batch))
        except LostError as error:
            self._lost(lane, str(error))
            return
        self._counters[REQUESTS] += 1
        self._counters[SENT] += sent

    # -- back ---------------------------------------------------------------------------------------------------------

    def _hear(self, lane: _Lane) -> None:
        """Something came over a connection: an answer, or its end."""
        assert lane.link is not None
        if not lane.jobs or lane.ask_at:
            self._lost(lane, "the connection was closed")
            return
        try:
            reply = lane.link.receive()
        except LostError as error:
            self._lost(lane, str(error))
            return
        self._counters[RECEIVED] += lane.link.received
        if reply.status == _FULL and time.monotonic() - lane.since < self._patience:
            lane.ask_at = time.monotonic() + _FULL_PAUSE
            return
        job = lane.jobs.popleft()
        try:
            self._take_back(lane, job, self._asking.answers(job, reply))
        except (UnreadableError, LostError) as error:
            self._fail(lane, job, UNREACHED, self._at(str(error)))
        self._go_on(lane)

    def _take_back(self, lane: _Lane, job: Job, answers: Answers) -> None:
        failed = [m for m in job.members if self._names[m] in answers.missing]
        for member in job.alone:
            if member not in failed:
                misfits = self._desk.put(member, job.batch, answers.outputs[self._names[member]])
                if misfits.any():
                    self._mark(lane, member, job.batch[misfits], MISSHAPEN, "rows of one request differ in shape")
        if answers.partial:
            folded = [m for m in job.members if m in self._asking.shares and m not in failed]
            self._desk.put_partial(folded, job.batch, answers.partial, self._asking.nothing)
        if not failed:
            return
        if len(job.batch) > 1:
            # Each request alone, so that it fails only those it must.
            single = (job.batch[i : i + 1] for i in range(len(job.batch)))
            lane.jobs.extend(self._asking.job(tuple(failed), entry) for entry in single)
            return
        for member in failed:
            reason = answers.missing[self._names[member]]
            self._mark(lane, member, job.batch, code_of(reason), self._at(reason))

    def _fail(self, lane: _Lane, job: Job, code: int, detail: str) -> None:
        for member in job.members:
            self._mark(lane, member, job.batch, code, detail)

    def _mark(self, lane: _Lane, member: int, batch: Entries, code: int, detail: str) -> None:
        cell, entries = lane.cells[member], lane.taken[member]
        entries[np.isin(entries[:, 1], batch[:, 1]), 3] = code
        self._arena.counters[cell][3] += len(batch)
        self._arena.errors[cell].set(detail)

    def _report(self, lane: _Lane) -> None:
        took = int((time.monotonic() - lane.since) * 1e9)
        for member, entries in lane.taken.items():
            counters = self._arena.counters[lane.cells[member]]
            counters[0] += 1
            counters[1] += entries[:, 2].sum()
            counters[2] += took
        report_together({lane.intakes[member]: entries for member, entries in lane.taken.items()})
        lane.taken = {}
        ring(self._combiner)

    # -- connections --------------------------------------------------------------------------------------------------

    def _connect_all(self) -> None:
        """Connect the lanes that are not; after a failure, later."""
        self._connect_at = float("inf")
        for lane in self._lanes:
            if lane.link is None and not self._connect(lane):
                self._connect_at = time.monotonic() + self._pause
                self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
                return
        self._pause = _FIRST_PAUSE

    def _connect(self, lane: _Lane) -> bool:
        """Connect a lane and see whether its shard answers as it should."""
        link = None
        try:
            link = Link(self._remote.url, authorization(self._remote.token_file), TARGET, _WARM_UP_SECONDS)
            self._warm_up(link)
            link.patient(self._patience)
        except (LostError, UnreadableError, ManifestError) as error:
            if link is not None:
                link.close()
            self._say(lane, self._at(str(error)))
            return False
        lane.link = link
        self._say(lane, "")
        return True

    def _warm_up(self, link: Link) -> None:
        """Ask all members for a made-up row."""
        question, rows = self._asking.made_up(self._members)
        link.send(question, rows)
        answers = self._asking.read(self._members, None, 1, link.receive())
        if answers.missing:
            raise LostError("; ".join(f"{member} {reason}" for member, reason in answers.missing.items()))

    def _say(self, lane: _Lane, trouble: str) -> None:
        """Tell everybody how this lane is."""
        arena = self._arena
        for member, cell in lane.cells.items():
            arena.errors[cell].set(trouble)
            with MemberLock(arena, member, cell):  # the supervisor looks after queues of members without a worker
                if not trouble:
                    arena.state[cell] = READY
                elif arena.state[cell] == READY:
                    arena.state[cell] = FAILED
        if trouble != self._trouble:
            self._trouble = trouble
            fields = {"remote": self._remote.name, "url": self._remote.url}
            if trouble:
                log.warning("shard out of reach", extra={**fields, "error": trouble})
            else:
                log.info("shard connected", extra=fields)

    def _lost(self, lane: _Lane, why: str) -> None:
        """A connection has ended: what was on its way goes once more, over a new one."""
        assert lane.link is not None
        lane.link.close()
        lane.link = None
        connected = self._connect(lane)
        if lane.jobs or not connected:  # a shard closes connections that have been idle for long
            self._counters[LOST] += 1
        if connected and not (lane.jobs and lane.repeated):
            if lane.jobs:
                lane.repeated = True
                self._send(lane)
            return
        self._connect_at = time.monotonic()
        if lane.jobs:
            for job in lane.jobs:
                self._fail(lane, job, UNREACHED, self._trouble or self._at(why))
            lane.jobs.clear()
            self._report(lane)

    def _give_up_waiting(self) -> None:
        """Without a connection: nobody shall wait for a shard that may never come back."""
        lane = self._lanes[0]
        arena = self._arena
        lost = [m for m in self._members if not any(arena.state[cell] == READY for cell in self._elsewhere(m))]
        while taken := {m: lane.intakes[m].entries(count) for m in lost if (count := lane.intakes[m].take())}:
            for member, entries in taken.items():
                entries[:, 3] = UNREACHED
                arena.counters[lane.cells[member]][3] += len(entries)
            report_together({lane.intakes[member]: entries for member, entries in taken.items()})
            ring(self._combiner)

    def _at(self, trouble: str) -> str:
        return f"shard '{self._remote.name}' at {self._remote.url}: {trouble}"

    # -- sleep --------------------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Until there is work, an answer, or a time at which something is due."""
        poll, now = select.poll(), time.monotonic()
        poll.register(self._doorbell, select.POLLIN)
        lanes, due = {}, [self._connect_at]
        for lane in self._lanes:
            if lane.link is not None:
                poll.register(lane.link.fileno(), select.POLLIN)
                lanes[lane.link.fileno()] = lane
                if lane.jobs:
                    due.append(lane.ask_at or lane.since + self._patience)
        free = any(not lane.jobs for lane in lanes.values())
        self._arena.idle[self._process] = int(free)
        if free and any(intake.waiting() for intake in self._lanes[0].intakes.values()):
            return
        rest = min(due) - now
        for fd, _ in poll.poll(None if rest == float("inf") else max(0.0, rest) * 1000):
            if fd == self._doorbell:
                os.read(fd, 8)
            else:
                self._hear(lanes[fd])
        now = time.monotonic()
        for lane in lanes.values():
            if lane.link is not None and lane.jobs:
                if lane.ask_at and now >= lane.ask_at:
                    self._send(lane)
                elif not lane.ask_at and now - lane.since > self._patience:
                    lane.repeated = True  # a second time would take as long
                    self._lost(lane, f"no answer within {self._patience:g} s")
