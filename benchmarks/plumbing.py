"""What the serving layers cost: four tiny members, one row a request, against a bare aiohttp application on uvloop."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from common import Effort, Report, alternate, main, ratio, verdict
from configurations import BATCH, dealt_out
from load import infer, latency, throughput, wrk
from models import PIXELS, TINY_INPUT, tiny_torch
from serving import bare_application, runtime

from ensemble_runtime.config import Hosting

MEMBERS = 4
CONNECTIONS = 64
TARGET_RATIO, TARGET_LATENCY = 0.6, 4.0


def plumbing(effort: Effort) -> Report:
    """Compare at 64 connections by answers a second, and at 1 by the median latency."""
    row = np.random.default_rng(0).random((1, PIXELS), dtype=np.float32)
    bare = "bare aiohttp on uvloop"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = tiny_torch(folder, MEMBERS)
        targets = {bare: infer(stack.enter_context(bare_application()), "tiny", row)}
        for hosting in Hosting:
            base, _ = stack.enter_context(runtime(dealt_out("tiny", paths, TINY_INPUT, hosting)))
            targets[f"ensemble, {hosting}"] = infer(base, "tiny", row)
        for target in targets.values():
            wrk(target, CONNECTIONS, 1)
        many = alternate(
            {side: throughput(t, CONNECTIONS, effort.seconds) for side, t in targets.items()}, effort.rounds
        )
        one = alternate({side: latency(t, effort.seconds) for side, t in targets.items()}, effort.rounds)
    rows = []
    for side in targets:
        share, slower = ratio(many[side], many[bare]), ratio(one[side], one[bare])
        judged = side != bare
        rows.append(
            [
                side,
                f"{median(many[side]):,.0f}",
                f"{share:.2f} ({verdict(share, TARGET_RATIO)})" if judged else "1",
                f"{median(one[side]):.2f}",
                f"{slower:.1f} ({verdict(slower, TARGET_LATENCY, at_most=True)})" if judged else "1",
            ]
        )
    return Report(
        f"{MEMBERS} TorchScript MLPs ({PIXELS} -> 256 -> 10), one cell each, batch limit {BATCH}, one row a request, "
        f"binary bodies, wrk with one thread on the same cores; medians of {effort.rounds} alternating runs of "
        f"{effort.seconds:g} s.",
        ["server", f"requests/s, {CONNECTIONS} connections", "ratio", "p50 in ms, 1 connection", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main(plumbing, seconds=5, rounds=5)
