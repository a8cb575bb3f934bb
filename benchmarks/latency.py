"""Whether the latency model and the simulation tell what the live runtime does: p50 and p99 under Poisson arrivals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import numpy as np
from common import Effort, Report, main, progress
from load import Target, infer
from serving import runtime
from simulated import INPUT, KIND, Cost, configuration, plan_for

from ensemble_operator.planner.instance import build
from ensemble_operator.planner.latency import quantile
from ensemble_operator.planner.pipeline import Pipeline, pipeline
from ensemble_operator.planner.score import score
from ensemble_operator.planner.simulate import poisson
from ensemble_runtime.config import Hosting

ROWS = 4
LOADS = (0.2, 0.5, 0.8)
PLAYED = 20_000
"""Requests of a simulation."""
PARTS = (0.5, 0.99)
CONNECTIONS = 256


@dataclass(frozen=True)
class Case:
    """An ensemble on so many simulated devices."""

    name: str
    costs: dict[str, Cost]
    devices: int


def cases() -> Iterator[Case]:
    """Alone on its device, together on one, data-parallel, and a mixture."""
    even = Cost(start=0.008, each=0.0010, memory=2**30)
    quick, slow = Cost(start=0.004, each=0.0005, memory=2**30), Cost(start=0.02, each=0.002, memory=2**30)
    yield Case("1 member on 1 device", {"a": even}, 1)
    yield Case("1 member on 3 devices", {"a": even}, 3)
    yield Case("3 alike on 1 device", {"a": even, "b": even, "c": even}, 1)
    yield Case("quick and slow on 2 devices", {"quick": quick, "slow": slow}, 2)
    yield Case("4 different on 3 devices", {"quick": quick, "slow": slow, "a": even, "b": even}, 3)


def live(effort: Effort) -> Report:
    """Milliseconds of the model, of the simulation and of the runtime, at several loads."""
    rows = []
    model_ratios, played_ratios = [], []
    for case in cases():
        plan = plan_for(case.costs, case.devices)
        instance = build(plan.problem, every_batch=True)
        found = score(instance, instance.matrix(plan.matrix))
        drawn = pipeline(instance, found.matrix, found.steady)
        body = np.random.default_rng(0).random((ROWS, *INPUT.shape), dtype=np.float32)
        with runtime(configuration(case.costs, plan, Hosting.PER_CELL)) as (base, _):
            target = infer(base, "heavy", body)
            asyncio.run(_latencies(target, 0.2 * plan.rate / ROWS, 1.0))
            for load in LOADS:
                measured = asyncio.run(_latencies(target, load * plan.rate / ROWS, effort.seconds))
                told = [_told(drawn, load * plan.rate, part) for part in PARTS]
                seen = [float(np.quantile(measured, part)) for part in PARTS]
                model_ratios += [model / real for (model, _), real in zip(told, seen, strict=True)]
                played_ratios += [played / real for (_, played), real in zip(told, seen, strict=True)]
                cells = [
                    f"{1e3 * model:.0f} / {1e3 * played:.0f} / {1e3 * real:.0f}"
                    for (model, played), real in zip(told, seen, strict=True)
                ]
                rows.append([case.name, f"{load:.1f}", f"{load * plan.rate:.0f}", str(len(measured)), *cells])
                progress(" | ".join(rows[-1]))
    for name, ratios in (("model / live", model_ratios), ("simulation / live", played_ratios)):
        low, middle, high = np.percentile(ratios, [0, 50, 100])
        rows.append([f"{name}: least, median, most", "", "", "", f"{low:.2f}, {middle:.2f}, {high:.2f}", ""])
    return Report(
        f"Simulated devices of type {KIND}, planned by the planner; requests of {ROWS} rows arrive as a Poisson stream "
        f"over HTTP for {effort.seconds:g} s at a part of the plan's rate; milliseconds as the queueing model says, as "
        f"the event simulation of {PLAYED:,} requests says, and as a client of the live runtime on these cores sees.",
        ["case", "load", "rows/s", "requests", "p50: model / simulation / live", "p99: model / simulation / live"],
        rows,
    )


def _told(drawn: Pipeline, rate: float, part: float) -> tuple[float, float]:
    """Seconds by the model and by the simulation."""
    played = poisson(drawn, rate=rate, request_rows=ROWS, requests=PLAYED)
    return quantile(drawn, rate=rate, request_rows=ROWS, part=part), played.quantile(part)


async def _latencies(target: Target, per_second: float, seconds: float) -> list[float]:
    """Seconds of each request of a Poisson stream; a request's time starts when it was due, not when it was sent."""
    random = np.random.default_rng(1)
    due = np.cumsum(random.exponential(1 / per_second, int(per_second * seconds)))
    found: list[float] = []
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with (
        aiohttp.ClientSession(connector=connector, headers=target.headers) as session,
        asyncio.TaskGroup() as group,
    ):
        start = time.perf_counter() + 0.1
        for moment in due:
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            group.create_task(_ask(session, target, start + moment, found))
    return found


async def _ask(session: aiohttp.ClientSession, target: Target, due: float, found: list[float]) -> None:
    async with session.post(target.url, data=target.body) as answer:
        await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{target.url}: status {answer.status}")
    found.append(time.perf_counter() - due)


if __name__ == "__main__":
    main(live, seconds=30, rounds=1)
