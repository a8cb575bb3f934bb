"""What is left of the compute: CNNs of several sizes on all cores, against the same models run bare."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from bare_members import bare_members, loaders
from ceiling import Workload, against_bare, sizes_used
from common import Effort, Report, Rounds, alternate, cores, main, ratio, verdict
from load import infer, latency, wrk
from models import IMAGE_INPUT, convolutional
from serving import runtime

from ensemble_runtime.config import Hosting

WIDTHS = (12, 20, 28, 36)
SIZES = (1, 2, 4, 8)
CONNECTIONS, IMAGES = 16, 32
TARGET = 0.95


def compute(effort: Effort) -> Report:
    """Throughput at 16 connections, then the latency of one large request on an idle machine."""
    with tempfile.TemporaryDirectory() as folder:
        paths = convolutional(Path(folder), WIDTHS)
        workload = Workload("cnn", paths, IMAGE_INPUT, rows=1, connections=CONNECTIONS, sizes=SIZES)
        outcome = against_bare(workload, effort)
        large = _one_large_request(workload, outcome.batches, effort)
    rows = [
        [f"bare, {name} loader", f"{median(rates):.1f} rows/s", f"{ratio(rates, outcome.ceiling):.2f}"]
        for name, rates in outcome.bare.items()
    ]
    cells = ratio(outcome.bare_cells, outcome.ceiling)
    rows = [[*row, ""] for row in rows]
    rows.append(["bare, one process a cell", f"{median(outcome.bare_cells):.1f} rows/s", f"{cells:.2f}", ""])
    for hosting, rates in outcome.served.items():
        alike = ratio(rates, outcome.bare_cells if hosting is Hosting.PER_CELL else outcome.ceiling)
        share = f"{ratio(rates, outcome.ceiling):.2f}"
        rows.append(
            [f"ensemble, {hosting}", f"{median(rates):.1f} rows/s", share, f"{alike:.2f} ({verdict(alike, TARGET)})"]
        )
    alone = large.pop("alone")
    rows.append([f"{IMAGES} images, members one after the other on one core", f"{median(alone):.0f} ms", "1", ""])
    rows += [
        [
            f"{IMAGES} images in one request, {side}",
            f"{median(times):.0f} ms",
            f"{ratio(alone, times):.2f} times as fast",
            "",
        ]
        for side, times in large.items()
    ]
    return Report(
        f"{len(WIDTHS)} TorchScript CNNs on 3 x 64 x 64 images, of widths {', '.join(map(str, WIDTHS))}, every member "
        f"on every core, each side at its best batch sizes ({sizes_used(outcome)}); one image a request, "
        f"{CONNECTIONS} connections; bare: one pinned process a core with all members, or one a member and core, "
        f"which compute as many rows each; medians of {effort.rounds} alternating runs of {effort.seconds:g} s.",
        ["side", "result", "ratio", "to as many processes, bare"],
        rows,
    )


def _one_large_request(workload: Workload, batches: Mapping[str, list[int]], effort: Effort) -> dict[str, Rounds]:
    """Milliseconds from one request of many images to its answer, and of the same work on one core."""
    images = np.random.default_rng(1).random((IMAGES, *workload.input.shape), dtype=np.float32)
    with ExitStack() as stack:
        alone = stack.enter_context(
            bare_members(workload.paths, loaders(workload.input)["the runtime's"], images, cores()[:1])
        )
        sides: dict[str, Callable[[], float]] = {
            "alone": lambda: 1e3 * IMAGES / alone.rows_per_second(batches["bare"], effort.seconds)
        }
        for hosting in Hosting:
            base, _ = stack.enter_context(runtime(workload.on_all_cores(batches[hosting], hosting)))
            target = infer(base, workload.name, images)
            wrk(target, 1, 2)
            sides[hosting] = latency(target, effort.seconds)
        return alternate(sides, effort.rounds)


if __name__ == "__main__":
    main(compute)
