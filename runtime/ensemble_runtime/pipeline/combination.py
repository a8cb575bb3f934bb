"""The combination process: lets the combiner take in what members report, and the gateway know what is done."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from ensemble_runtime.errors import EnsembleError
from ensemble_runtime.members.storage import FetchedModel
from ensemble_runtime.pipeline.arena import SERVICES, Arena
from ensemble_runtime.pipeline.combiner import Combiner
from ensemble_runtime.pipeline.wiring import Wiring, linger, ring, sleep_until_rung_or

_PAUSE = 0.001
_LONGEST = 0.25
"""Seconds of sleep. A cell wakes nobody while another one holds up the same requests; should that one, too, be mistaken
or gone, what has been reported waits no longer than this."""
_TRIES = 16
"""Where lingering did not pay the last time, it is tried again after so many turns."""


def combine_until_killed(arena: Arena, wiring: Wiring, models: Mapping[str, FetchedModel]) -> int:
    """Run the combination process.

    Args:
        arena: The ensemble's arena.
        wiring: The doorbells.
        models: Holds the stacking model's file under its reserved name, where the rule asks for one.
    """
    try:
        combiner = Combiner(arena, models)
    except EnsembleError as error:
        arena.combiner_error.set(str(error))
        raise
    while len(arena.completions):
        # Until the gateway has read what the last combiner told it, the request table does not tell who is answered.
        ring(wiring.gateway)
        time.sleep(_PAUSE)
    arena.combining_since[0] = time.monotonic_ns()
    combiner.recover()
    arena.service_pids[SERVICES.index("combiner")] = os.getpid()
    lucky, turns = True, 0
    while True:
        told = combiner.turn()
        if told:
            ring(wiring.gateway)
        arena.combining_since[0] = 0
        if told and (lucky or turns % _TRIES == 0):
            lucky = linger(combiner.waiting)
        turns += 1
        if not combiner.waiting():
            sleep_until_rung_or(_LONGEST, wiring.combiner)
        arena.combining_since[0] = time.monotonic_ns()
