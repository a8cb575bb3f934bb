"""What the gateway alone costs: both lanes with an instant pipeline behind, against a bare aiohttp app on uvloop."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from common import Effort, Report, alternate, main, ratio
from instant_gateway import COLUMNS
from load import infer, latency, throughput, wrk
from serving import _server, bare_application, free_port

CONNECTIONS = 64


def gateway_floor(effort: Effort) -> Report:
    """Compare at 64 connections by answers a second, and at 1 by the median latency."""
    row = np.random.default_rng(0).random((1, COLUMNS), dtype=np.float32)
    port = free_port()
    arguments = [str(Path(__file__).parent / "instant_gateway.py"), str(port)]
    with ExitStack() as stack:
        base, _ = stack.enter_context(_server(arguments, port, "/v2/health/ready"))
        fast = infer(base, "tiny", row)
        bare = "bare aiohttp on uvloop"
        targets = {
            bare: infer(stack.enter_context(bare_application()), "tiny", row),
            "fast lane": fast,
            # What is not plain goes to aiohttp, and this header is enough.
            "aiohttp lane": replace(fast, headers=fast.headers | {"Content-Encoding": "identity"}),
        }
        for target in targets.values():
            wrk(target, CONNECTIONS, 1)
        many = alternate(
            {side: throughput(t, CONNECTIONS, effort.seconds) for side, t in targets.items()}, effort.rounds
        )
        one = alternate({side: latency(t, effort.seconds) for side, t in targets.items()}, effort.rounds)
    return Report(
        f"One row of {COLUMNS} FP32 a request, binary both ways, {CONNECTIONS} connections of wrk (one thread, on the "
        f"same cores) and 1; medians of {effort.rounds} alternating runs of {effort.seconds:g} s.",
        ["server", f"requests/s, {CONNECTIONS} connections", "ratio", "p50 in ms, 1 connection", "ratio"],
        [
            [
                side,
                f"{median(many[side]):,.0f}",
                f"{ratio(many[side], many[bare]):.2f}",
                f"{median(one[side]):.3f}",
                f"{ratio(one[side], one[bare]):.2f}",
            ]
            for side in targets
        ],
    )


if __name__ == "__main__":
    main(gateway_floor, seconds=4, rounds=3)
