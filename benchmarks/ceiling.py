"""The comparison that compute.py and bulk.py share: an ensemble on all cores against the same models run bare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from bare_members import BareMembers, bare_cells, bare_members, loaders
from common import Effort, Rounds, alternate, cores, progress
from configurations import everywhere
from load import infer, throughput
from numpy.typing import NDArray
from serving import runtime

from ensemble_runtime.config import Hosting, RuntimeConfig, TensorSpec

WARM = 2.0
"""Seconds of load before the counted ones."""
SCAN = 1.0
"""Seconds of a run that looks for the best batch sizes."""


_CELLS = "bare, one process a cell"


@dataclass(frozen=True)
class Workload:
    """What is asked of the ensemble."""

    name: str
    paths: Sequence[Path]
    input: TensorSpec
    rows: int
    """Rows of one request."""
    connections: int
    sizes: Sequence[int]
    """Batch sizes to choose from."""

    def on_all_cores(self, batches: Sequence[int], hosting: Hosting) -> RuntimeConfig:
        """The ensemble with a cell of every member on every core."""
        return everywhere(self.name, self.paths, self.input, hosting, batches)


@dataclass(frozen=True)
class Outcome:
    """Rows/s of each side, and the batch sizes that they ran at."""

    bare: dict[str, Rounds]
    bare_cells: Rounds
    """As those of the ceiling, in as many processes as an ensemble with one process a cell."""
    served: dict[Hosting, Rounds]
    batches: dict[str, list[int]]
    """Of "bare", and of each hosting: every side runs at its own best."""

    @property
    def ceiling(self) -> Rounds:
        """The faster way to run the models bare."""
        return max(self.bare.values(), key=median)


def against_bare(workload: Workload, effort: Effort) -> Outcome:
    """Measure all sides in turn on the same models and cores, each at its best batch sizes."""
    pool = np.random.default_rng(0).random((max(64, 4 * max(workload.sizes)), *workload.input.shape), dtype=np.float32)
    with ExitStack() as stack:
        bare = {
            name: stack.enter_context(bare_members(workload.paths, loader, pool, cores()))
            for name, loader in loaders(workload.input).items()
        }
        batches = {"bare": _best_bare(bare, workload.sizes, effort)}
        request = pool[: workload.rows]
        targets = {}
        for hosting in Hosting:
            batches[hosting] = _best_served(workload, hosting, batches["bare"], request, effort)
            base, _ = stack.enter_context(runtime(workload.on_all_cores(batches[hosting], hosting)))
            targets[hosting] = infer(base, workload.name, request)
        progress(f"best batch sizes: {batches}")
        bare_sides = {name: _bare_rate(members, batches["bare"], effort) for name, members in bare.items()}
        rates = {name: side() for name, side in bare_sides.items()}
        best = max(rates, key=rates.__getitem__)
        cells = stack.enter_context(bare_cells(workload.paths, loaders(workload.input)[best], pool, cores()))
        rows = _as_many_rows(rates[best] / len(cores()) * effort.seconds, batches["bare"])
        served_sides = {
            str(hosting): throughput(target, workload.connections, effort.seconds, WARM)
            for hosting, target in targets.items()
        }
        bare_sides[_CELLS] = lambda: cells.rows_per_second(batches["bare"], rows)
        found = alternate({**bare_sides, **served_sides}, effort.rounds)
    served = {hosting: [workload.rows * rate for rate in found[str(hosting)]] for hosting in Hosting}
    return Outcome({name: found[name] for name in bare}, found[_CELLS], served, batches)


def _as_many_rows(rows: float, batches: Sequence[int]) -> int:
    """About so many, whole batches for each member."""
    largest = max(batches)
    return max(1, round(rows / largest)) * largest


def _bare_rate(members: BareMembers, batches: Sequence[int], effort: Effort) -> Callable[[], float]:
    return lambda: members.rows_per_second(batches, effort.seconds)


def _best_bare(bare: Mapping[str, BareMembers], sizes: Sequence[int], effort: Effort) -> list[int]:
    """The best batch sizes under the loader that is faster at its own best."""
    seconds = min(SCAN, effort.seconds)
    choices = {name: members.best_batches(sizes, seconds) for name, members in bare.items()}
    rates = {name: bare[name].rows_per_second(choices[name], effort.seconds) for name in bare}
    return choices[max(rates, key=lambda name: rates[name])]


def _best_served(
    workload: Workload, hosting: Hosting, best_bare: list[int], request: NDArray[np.float32], effort: Effort
) -> list[int]:
    """The best of the bare members' batch sizes and of one size for all, as `plan --measure` would try them."""
    seconds = min(2 * SCAN, effort.seconds)
    rates: dict[tuple[int, ...], float] = {}
    choices: list[list[int]] = [best_bare, *([size] * len(workload.paths) for size in workload.sizes)]
    for choice in choices:
        with runtime(workload.on_all_cores(choice, hosting)) as (base, _):
            target = infer(base, workload.name, request)
            rates[tuple(choice)] = throughput(target, workload.connections, seconds, SCAN)()
    return list(max(rates, key=rates.__getitem__))


def sizes_used(outcome: Outcome) -> str:
    """The batch sizes of each side, for a report."""
    return "; ".join(f"{side} {', '.join(map(str, sizes))}" for side, sizes in outcome.batches.items())
