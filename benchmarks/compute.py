"""What is left of the compute: CNNs of several sizes on all cores, against the same models run bare."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from bare_members import bare_members, loaders
from ceiling import Workload, against_bare
from common import Effort, Report, alternate, cores, main, verdict
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
        [f"bare, {name} loader", f"{rate:.1f} rows/s", f"{rate / outcome.ceiling:.2f}"]
        for name, rate in outcome.bare.items()
    ]
    for hosting, rate in outcome.served.items():
        share = rate / outcome.ceiling
        rows.append([f"ensemble, {hosting}", f"{rate:.1f} rows/s", f"{share:.2f} ({verdict(share, TARGET)})"])
    alone = large.pop("alone")
    rows.append([f"{IMAGES} images, members one after the other on one core", f"{alone:.0f} ms", "1"])
    rows += [
        [f"{IMAGES} images in one request, {side}", f"{ms:.0f} ms", f"{alone / ms:.2f} times as fast"]
        for side, ms in large.items()
    ]
    batches = ", ".join(f"{path.stem} {batch}" for path, batch in zip(paths, outcome.batches, strict=True))
    return Report(
        f"{len(WIDTHS)} TorchScript CNNs on 3 x 64 x 64 images, every member on every core, best batch sizes "
        f"({batches}); one image a request, {CONNECTIONS} connections; bare: one pinned process a core with all "
        f"members; medians of {effort.rounds} alternating runs of {effort.seconds:g} s.",
        ["side", "result", "ratio"],
        rows,
    )


def _one_large_request(workload: Workload, batches: list[int], effort: Effort) -> dict[str, float]:
    """Milliseconds from one request of many images to its answer, and of the same work on one core."""
    images = np.random.default_rng(1).random((IMAGES, *workload.input.shape), dtype=np.float32)
    found: dict[str, float] = {}
    with bare_members(workload.paths, loaders(workload.input)["the runtime's"], images, cores()[:1]) as members:
        found["alone"] = 1e3 * IMAGES / members.rows_per_second(batches, effort.seconds)
    for hosting in Hosting:
        with runtime(workload.on_all_cores(batches, hosting)) as (base, _):
            target = infer(base, workload.name, images)
            wrk(target, 1, 2)
            found |= alternate({str(hosting): latency(target, effort.seconds)}, effort.rounds)
    return found


if __name__ == "__main__":
    main(compute)
