"""`plan --measure`: starts a runtime with each of the best few plans, and puts load on it."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemble_operator.cli.fetching import fetch_missing, loaded_by
from ensemble_operator.cli.loading import Load, put_load
from ensemble_operator.cli.output import figure, note, progress
from ensemble_operator.cli.preparing import Prepared
from ensemble_operator.cli.runtime_process import RuntimeProcess
from ensemble_operator.cli.server import Server, find
from ensemble_operator.manifests.runtime_config import runtime_config
from ensemble_runtime.config import Listen
from ensemble_runtime.errors import EnsembleError

if TYPE_CHECKING:
    from ensemble_operator.planner.plan import Plan

_HOST = "127.0.0.1"
_SECONDS = 5.0
_MOST_ROWS = 256
_CONNECTIONS = (4, 64)


@dataclass(frozen=True)
class Trial:
    """A plan, and what it reached, live on this machine."""

    plan: Plan
    rate: float
    """Rows per second; 0 if it failed."""
    failure: str | None = None


def try_plans(prepared: Prepared, plans: Sequence[Plan]) -> list[Trial]:
    """Try plans one after the other; one that fails does not keep the others from being tried.

    Raises:
        EnsembleError: All failed: what the first one met, a runtime that could not start or that answered with errors.
    """
    needed = {m.name: m for plan in plans for m in loaded_by(prepared.ensemble, prepared.digests, plan)}
    fetch_missing(needed.values())
    with progress() as bar:
        task = bar.add_task("measuring", total=len(plans), detail="")
        trials: list[Trial] = []
        failures: list[EnsembleError] = []
        for i, plan in enumerate(plans):
            best = max((trial.rate for trial in trials), default=0.0)
            so_far = f", best so far {figure(best)} rows/s" if best else ""
            bar.update(task, completed=i, detail=f"plan {i + 1} of {len(plans)}{so_far}")
            try:
                trials.append(Trial(plan, _rate(prepared, plan)))
            except EnsembleError as error:
                note(f"plan {plan.digest}: {error}")
                failures.append(error)
                trials.append(Trial(plan, 0.0, str(error)))
    if len(failures) == len(plans):
        raise failures[0]
    return trials


def _rate(prepared: Prepared, plan: Plan) -> float:
    listen = Listen(host=_HOST, port=free_port(_HOST))
    with RuntimeProcess(runtime_config(prepared.ensemble, prepared.digests, plan, listen)) as runtime:
        runtime.wait_until_ready(quiet=True)
        server = find(runtime.url, prepared.ensemble.metadata.name)
        return put_load(server, saturating(server, plan, _SECONDS)).rows_per_second


def saturating(server: Server, plan: Plan, seconds: float) -> Load:
    """A load that leaves no worker idle: twice as many rows in flight as the fullest column takes at once."""
    batches = [batch for row in plan.matrix for batch in row]
    rows = min(max(batches), server.max_rows, _MOST_ROWS)
    at_once = max(map(sum, zip(*plan.matrix, strict=True)))
    least, most = _CONNECTIONS
    return Load(max(least, min(most, math.ceil(2 * at_once / rows))), rows, seconds)


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
