"""What a member on another node costs its head: the same ensemble in one runtime, and half of it in a shard.

Head and shard run on this machine, so that the wire is the loopback and both share its cores: what is measured is the
work of handing over, not the gain of a second node.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from common import Effort, Report, alternate, main, ratio
from configurations import BATCH, dealt_out
from load import Target, infer, latency, throughput, wrk
from models import PIXELS, TINY_INPUT, tiny_torch
from serving import runtime

from ensemble_runtime.config import Cell, Combination, Hosting, Remote, Rule, RuntimeConfig, Shard

MEMBERS = 4
CONNECTIONS = 64
RULES = {Rule.MEAN: "sums come back", Rule.MEDIAN: "members' rows come back"}


def span(effort: Effort) -> Report:
    """Compare by answers a second at 64 connections, and by the median latency at 1."""
    row = np.random.default_rng(0).random((1, PIXELS), dtype=np.float32)
    targets: dict[str, Target] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        token = folder / "token"
        token.write_text("benchmark")
        config = dealt_out("tiny", tiny_torch(folder, MEMBERS), TINY_INPUT, Hosting.PER_CELL)
        far = [member.name for member in config.members[MEMBERS // 2 :]]
        url, _ = stack.enter_context(runtime(_shard(config, far, token)))
        for rule in RULES:
            combined = config.model_copy(update={"combination": Combination(rule=rule)})
            for side, each in ((_here(rule), combined), (_apart(rule), _head(combined, far, url, token))):
                base, _ = stack.enter_context(runtime(each))
                targets[side] = infer(base, "tiny", row)
        for target in targets.values():
            wrk(target, CONNECTIONS, 1)
        many = alternate(
            {side: throughput(t, CONNECTIONS, effort.seconds) for side, t in targets.items()}, effort.rounds
        )
        one = alternate({side: latency(t, effort.seconds) for side, t in targets.items()}, effort.rounds)
    rows = []
    for rule in RULES:
        for side in (_here(rule), _apart(rule)):
            rows.append(
                [
                    side,
                    f"{median(many[side]):,.0f}",
                    f"{ratio(many[side], many[_here(rule)]):.2f}",
                    f"{median(one[side]):.2f}",
                    f"{ratio(one[side], one[_here(rule)]):.2f}",
                ]
            )
    return Report(
        f"{MEMBERS} TorchScript MLPs ({PIXELS} -> 256 -> 10), one cell each, batch limit {BATCH}, one row a request, "
        f"binary bodies; apart: {len(far)} of them in a shard on the same machine, over the loopback. wrk with one "
        f"thread on the same cores; medians of {effort.rounds} alternating runs of {effort.seconds:g} s.",
        ["ensemble", f"requests/s, {CONNECTIONS} connections", "ratio", "p50 in ms, 1 connection", "ratio"],
        rows,
    )


def _here(rule: Rule) -> str:
    return f"{rule}, all in one runtime"


def _apart(rule: Rule) -> str:
    return f"{rule}, half in a shard: {RULES[rule]}"


def _shard(config: RuntimeConfig, members: list[str], token: Path) -> RuntimeConfig:
    return config.model_copy(
        update={
            "members": tuple(member for member in config.members if member.name in members),
            "cells": tuple(cell for cell in config.cells if cell.member in members),
            "shard": Shard(token_file=str(token)),
        }
    )


def _head(config: RuntimeConfig, members: list[str], url: str, token: Path) -> RuntimeConfig:
    local = [cell for cell in config.cells if cell.member not in members]
    cells = [*local, *(Cell(device="shard", member=member, batch_size=BATCH) for member in members)]
    remote = Remote(name="shard", url=url, token_file=str(token))
    return config.model_copy(update={"cells": tuple(cells), "remotes": (remote,)})


if __name__ == "__main__":
    main(span, seconds=5, rounds=5)
