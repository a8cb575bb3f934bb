"""The lives of the processes that the supervisor looks after, and which of them hang."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ensemble_runtime.errors import StartupError
from ensemble_runtime.pipeline.arena import READY, Arena

log = logging.getLogger(__name__)

GATEWAY, COMBINER, FORGE = "gateway", "combiner", "forge"
"""Roles; that of a prediction process is its number."""

_STEADY = 10.0
"""A process that lived for so many seconds is restarted at once, another after a growing pause."""
_LONGEST_PAUSE = 30.0


@dataclass(slots=True)
class Life:
    """One role's process: its pid (0: none), since when, and how often it died soon after it was born."""

    pid: int = 0
    born: float = 0.0
    quick_deaths: int = 0
    due: float | None = 0.0
    """When to start it again; None: it runs, or must not run."""
    asked: bool = False
    """Whether the forge has been asked for it."""
    stopped: float | None = None
    """When a signal stopped it; None: it may run."""

    def begin(self, pid: int) -> None:
        """A process was started."""
        self.pid, self.born, self.due, self.asked, self.stopped = pid, time.monotonic(), None, False, None

    def end(self) -> float:
        """It is due again after a pause, which is returned, in seconds."""
        now = time.monotonic()
        self.quick_deaths = 0 if now - self.born > _STEADY else self.quick_deaths + 1
        pause = 0.0 if self.quick_deaths <= 1 else min(_LONGEST_PAUSE, 0.1 * 2**self.quick_deaths)
        self.due = now + pause
        return pause


class EarlyDeaths:
    """Deaths of processes that the forge has forked and not told of yet.

    Only while it is asked for one: whoever else ends is an orphan that the supervisor has adopted, as the process of a
    partition's second device is. Remembered, its death would be that of a later process that is given the same pid.
    """

    def __init__(self) -> None:
        """None."""
        self._statuses: dict[int, int] = {}

    def note(self, pid: int, status: int, lives: Mapping[str, Life]) -> None:
        """A process has ended that has no role."""
        if _asked(lives):
            self._statuses[pid] = status

    def of(self, pid: int, lives: Mapping[str, Life]) -> int | None:
        """With which status a process has ended that has been given its role now; None: it has not."""
        status = self._statuses.pop(pid, None)
        if not _asked(lives):
            self.forget()
        return status

    def forget(self) -> None:
        """The forge is gone, and tells of nothing any more."""
        self._statuses.clear()


def _asked(lives: Mapping[str, Life]) -> bool:
    return any(life.asked for life in lives.values())


def hanging(arena: Arena, lives: Mapping[str, Life], *, started: bool) -> Iterator[int]:
    """Pids of processes that stay stopped, or compute, combine or start for longer than the configuration allows.

    Args:
        arena: The ensemble's arena.
        lives: By role.
        started: Whether everything has been ready once.

    Raises:
        StartupError: a member takes too long before anything was ready; it says which, and why if that is known.
    """
    serving, now = arena.config.serving, time.monotonic()
    patience = serving.patience
    for role, life in lives.items():
        if life.pid and life.stopped and now - life.stopped > patience:
            log.error("process stays stopped", extra={"role": role, "pid": life.pid})
            yield life.pid
    combiner = lives[COMBINER].pid
    if combiner and _longer(arena.combining_since[0], patience):
        log.error("combination hangs", extra={"pid": combiner})
        yield combiner
    for process, cells in enumerate(arena.geometry.processes):
        life = lives[str(process)]
        late = now - life.born > serving.startup_timeout_ms / 1000
        for cell in cells if life.pid else ():
            name = arena.config.cells[cell].member
            starting = late and arena.state[cell] < READY
            if starting and not started:
                limit = f"{serving.startup_timeout_ms / 1000:g} s (serving.startupTimeoutMs)"
                trouble = f": {text}" if (text := arena.errors[cell].get()) else ""
                raise StartupError(f"member '{name}' was not ready within {limit}{trouble}")
            if starting or _longer(arena.batch_started[cell], patience):
                log.error("cell hangs", extra={"member": name, "pid": life.pid})
                yield life.pid
                break


def _longer(since: int, seconds: float) -> bool:
    """Whether something that began at `since` (CLOCK_MONOTONIC nanoseconds; 0: nothing) has lasted for longer."""
    return bool(since) and time.monotonic_ns() - since > seconds * 1e9
