"""`plan --measure`: starts a runtime with each of the best few plans, puts load on it, and keeps the winner."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ensemble_operator.cli.loading import Load, put_load
from ensemble_operator.cli.output import figure, progress
from ensemble_operator.cli.preparing import Prepared
from ensemble_operator.cli.runtime_process import RuntimeProcess
from ensemble_operator.cli.server import Server, find
from ensemble_operator.manifests.runtime_config import runtime_config
from ensemble_runtime.config import Listen

if TYPE_CHECKING:
    from ensemble_operator.planner.plan import Plan

_HOST = "127.0.0.1"
_SECONDS = 5.0
_MOST_ROWS = 256
_CONNECTIONS = (4, 64)


def measured_rates(prepared: Prepared, plans: Sequence[Plan]) -> list[float]:
    """Rows per second that each plan reaches, live on this machine.

    Raises:
        EnsembleError: A runtime could not start, or answered with errors.
    """
    with progress() as bar:
        task = bar.add_task("measuring", total=len(plans), detail="")
        rates: list[float] = []
        for i, plan in enumerate(plans):
            best = f", best so far {figure(max(rates))} rows/s" if rates else ""
            bar.update(task, completed=i, detail=f"plan {i + 1} of {len(plans)}{best}")
            rates.append(_rate(prepared, plan))
        return rates


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
