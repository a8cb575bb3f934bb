"""What planning a partition is worth: predicted against measured times, memory that leaves a GPU, seconds of planning.

Times are of two cores as two devices, which really run. The GPU is simulated: so many times faster than one core, for
every operator, 8 us a launch and 15 us a copy; what a GPU really gains on a recurrent layer differs by layer and rows.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from statistics import median

import numpy as np
from common import Effort, Report, cores, main, progress, verdict
from partition_cases import chance, stacked
from recurrent_models import Recurrent, models

from ensemble_runtime.config import Device, DeviceKind, Partition, PartitionObjective
from ensemble_runtime.partition.exact import CLOSE, MAX_TASKS, fewest_bytes, prove_bytes, prove_makespan
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.instance import SCARCE, Instance, Task
from ensemble_runtime.partition.planning import Choice, Costs, plan, ways_to_open
from ensemble_runtime.partition.schedule import NoScheduleError, least_bytes, least_makespan
from ensemble_runtime.partition.simulation import SimulatedGpu
from ensemble_runtime.partition.timeline import Schedule

ERROR, OFF, PLANNING, GAP = 0.15, 0.675, 5.0, 0.05
SLACK = 1.5
"""Of the latency that the memory pattern may have, over the whole model on the GPU."""
GRAPHS, MEMORY_SLACK = 10, 1.3
"""Graphs of chance of each size; the latency that objective Memory has there, over the least."""
SPEEDUPS = (1.5, 2.0, 3.0)
LATENCY = PartitionObjective.LATENCY


def planning(effort: Effort) -> Report:
    """Every model of the list, then a graph of 2,000 operators."""
    if len(cores()) < 2:
        raise RuntimeError("needs two cores")
    rows: list[list[str]] = []
    errors, saved = [], []
    for model in models():
        progress(model.name)
        graph = parse(model.build(), {"x": model.shape})
        predicted, measured = _times(model, graph, effort)
        errors.append(abs(predicted / measured - 1))
        off = _off(graph)
        saved.append(off)
        rows.append(
            [
                model.name,
                f"{model.steps}, {model.rows}",
                f"{predicted * 1e3:.2f} ms",
                f"{measured * 1e3:.2f} ms",
                f"{predicted / measured - 1:+.0%}",
                *(f"{share:.0%}" for share in off),
            ]
        )
    reached = [sum(off[i] >= OFF for off in saved) for i in range(len(SPEEDUPS))]
    rows.append(
        [
            "median error",
            "",
            "",
            "",
            f"{median(errors):.0%}, {verdict(median(errors), ERROR, at_most=True)}",
            "",
            "",
            "",
        ]
    )
    rows.append([f"at least {OFF:.1%} off", "", "", "", "", *(f"{n} of {len(saved)}" for n in reached)])
    for name, seconds in _large():
        rows.append([name, "", "", f"{seconds:.1f} s", verdict(seconds, PLANNING, at_most=True), "", "", ""])
    rows += _gaps()
    return Report(
        f"Predicted, measured: objective Latency on two cores, medians of {effort.rounds} times {effort.seconds:g} s. "
        "Off the GPU: the share of its bytes (weights, tensors, workspace; not its context) that objective Memory "
        f"saves within {SLACK:g} times the latency of the whole model on a GPU that is so many times faster than the "
        "core. At 1.5 times all of a model may leave; the faster the GPU, the less can. Gaps: of what is planned "
        "above the best that there is, which branch and bound proves to within the tolerance that is stated; for "
        "Memory it also looks for what the search missed by more than 5 %.",
        ["model", "steps, rows", "predicted", "measured", "error", *(f"off at {s:g}x" for s in SPEEDUPS)],
        rows,
    )


def _times(model: Recurrent, graph: Graph, effort: Effort) -> tuple[float, float]:
    """Seconds of a batch by the plan, and as they are."""
    before = os.sched_getaffinity(0)
    first, second = (
        Device(name=f"cpu{i}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=(core,))
        for i, core in enumerate(cores()[:2])
    )
    rows = [np.random.default_rng(0).standard_normal(model.shape).astype(np.float32)]
    predicted, measured = [], []
    try:
        for _ in range(effort.rounds):
            choice = plan(graph, Partition(objective=LATENCY), Costs((first, second)), chart=False).choice
            predicted.append(choice.schedule.makespan)
            os.sched_setaffinity(0, first.cores)
            measured.append(_measured(choice, (first, second), rows, effort.seconds))
            os.sched_setaffinity(0, before)
    finally:
        os.sched_setaffinity(0, before)
    return median(predicted), median(measured)


def _measured(choice: Choice, devices: tuple[Device, Device], rows: list[np.ndarray], seconds: float) -> float:
    executor = Executor(choice.opened.graph, choice.placement, devices)
    try:
        for _ in range(3):
            executor.compute(rows)
        times: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            before = time.perf_counter()
            executor.compute(rows)
            times.append(time.perf_counter() - before)
        return median(times)
    finally:
        executor.close()


def _off(graph: Graph) -> list[float]:
    """The share of the GPU's bytes that the memory pattern saves, by its speed; the core is measured once."""
    gpu = Device(name="gpu", kind=DeviceKind.SIMULATED, type="gpu", memory_bytes=2**34)
    cpu = Device(name="cpu0", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**30, cores=cores()[:1])
    costs = Costs((gpu, cpu), SimulatedGpu(speedup=1.0))
    as_fast = [costs.of(graph, steps).busy for steps in ways_to_open(graph)]
    found = []
    for speedup in SPEEDUPS:
        ways = [_sped_up(way, speedup) for way in as_fast]
        assignment = ways[0].whole(SCARCE)
        assert assignment is not None, "the simulated device runs everything"
        alone = Schedule(ways[0], assignment, tuple(range(len(assignment))))
        left = [alone.scarce_bytes]
        for way in ways:
            with suppress(NoScheduleError):
                left.append(fewest_bytes(way, SLACK * alone.makespan).scarce_bytes)
        found.append(1 - min(left) / alone.scarce_bytes)
    return found


def _sped_up(way: Instance, speedup: float) -> Instance:
    """A GPU that was as fast as the core, but for its launches, so many times faster."""

    def faster(task: Task) -> Task:
        here, core = task.seconds
        assert here is not None and core is not None, "both run everything"
        return replace(task, seconds=(here - core + core / speedup, core))

    return replace(way, tasks=tuple(map(faster, way.tasks)))


def _large() -> list[tuple[str, float]]:
    """Seconds of the processor for a graph of 2,000 operators, 20 layers of 100 chunks, without fusing any."""
    problem = stacked(20, 100, speed=3.0)
    found = []
    start = time.process_time()
    quick = least_makespan(problem)
    found.append(("2,000 operators, Latency", time.process_time() - start))
    start = time.process_time()
    least_bytes(problem, 1.5 * quick.makespan)
    found.append(("2,000 operators, Memory", time.process_time() - start))
    return found


def _gaps() -> list[list[str]]:
    """The largest gap between search and proof over graphs of chance of every size that is proven, by objective."""
    latency, memory, unproven = [], [], 0
    for count in range(1, MAX_TASKS + 1):
        progress(f"graphs of chance of {count} groups")
        for seed in range(GRAPHS):
            problem = chance(seed, count)
            quick = least_makespan(problem)
            limit = MEMORY_SLACK * quick.makespan
            quickest = prove_makespan(problem, tolerance=CLOSE)
            smallest = prove_bytes(problem, limit, tolerance=CLOSE)
            assert quickest is not None and smallest is not None, "small enough"
            unproven += (not quickest.complete) + (not smallest.complete)
            if quickest.complete:
                latency.append(quick.makespan / quickest.schedule.makespan - 1)
            if smallest.complete and smallest.bound:  # where it is 0, nothing is on the first device
                memory.append(fewest_bytes(problem, limit).scarce_bytes / smallest.bound - 1)
    told = f"{GRAPHS} graphs of each size up to {MAX_TASKS} groups"
    return [
        [f"gap of {name}, {told}", "", f"proven: {len(found)}", f"{max(found):.1%}", _within(max(found)), "", "", ""]
        for name, found in (("Latency, proven to 5 %", latency), ("Memory", memory))
    ] + [["not proven within the steps", "", "", f"{unproven}", "", "", "", ""]]


def _within(gap: float) -> str:
    return verdict(gap, GAP, at_most=True)


if __name__ == "__main__":
    main(planning, seconds=0.5, rounds=1)
