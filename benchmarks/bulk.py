"""What large requests cost: 1,024 rows each for four tiny members, against the same models run bare on all cores."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from ceiling import Workload, against_bare, sizes_used
from common import Effort, Report, main, ratio, verdict
from models import TINY_INPUT, tiny_torch

MEMBERS, ROWS, CONNECTIONS = 4, 1024, 4
SIZES = (64, 128, 256, 512, 1024)
TARGET = 0.85


def bulk(effort: Effort) -> Report:
    """Rows/s of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        paths = tiny_torch(Path(folder), MEMBERS)
        outcome = against_bare(Workload("tiny", paths, TINY_INPUT, ROWS, CONNECTIONS, SIZES), effort)
    rows = [
        [f"bare, {name} loader", f"{median(rates):,.0f}", f"{ratio(rates, outcome.ceiling):.2f}"]
        for name, rates in outcome.bare.items()
    ]
    cells = outcome.bare_cells
    rows.append(["bare, one process a cell", f"{median(cells):,.0f}", f"{ratio(cells, outcome.ceiling):.2f}"])
    for hosting, rates in outcome.served.items():
        share = ratio(rates, outcome.ceiling)
        rows.append([f"ensemble, {hosting}", f"{median(rates):,.0f}", f"{share:.2f} ({verdict(share, TARGET)})"])
    return Report(
        f"{MEMBERS} TorchScript MLPs (784 -> 256 -> 10), every member on every core, each side at its best "
        f"batch sizes ({sizes_used(outcome)}); {ROWS:,} rows a request, {CONNECTIONS} connections, wrk on "
        f"the same cores; bare: one pinned process a core with all members; medians of {effort.rounds} alternating "
        f"runs of {effort.seconds:g} s.",
        ["side", "rows/s", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main(bulk)
