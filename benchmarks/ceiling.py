"""The comparison that compute.py and bulk.py share: an ensemble on all cores against the same models run bare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from bare_members import BareMembers, bare_members, loaders
from common import Effort, Rounds, alternate, cores, progress
from configurations import everywhere
from load import infer, throughput
from serving import runtime

from ensemble_runtime.config import Hosting, RuntimeConfig, TensorSpec

WARM = 2.0
"""Seconds of load before the counted ones."""
SCAN = 1.0
"""Seconds for each batch size of each member, when looking for the best."""


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
    served: dict[Hosting, Rounds]
    batches: list[int]

    @property
    def ceiling(self) -> Rounds:
        """The faster way to run the models bare."""
        return max(self.bare.values(), key=median)


def against_bare(workload: Workload, effort: Effort) -> Outcome:
    """Measure all sides in turn on the same models, batch sizes and cores."""
    pool = np.random.default_rng(0).random((max(64, 4 * max(workload.sizes)), *workload.input.shape), dtype=np.float32)
    with ExitStack() as stack:
        bare = {
            name: stack.enter_context(bare_members(workload.paths, loader, pool, cores()))
            for name, loader in loaders(workload.input).items()
        }
        batches = _best(bare, workload.sizes, effort)
        progress(f"best batch sizes: {batches}")
        targets = {}
        for hosting in Hosting:
            base, _ = stack.enter_context(runtime(workload.on_all_cores(batches, hosting)))
            targets[hosting] = infer(base, workload.name, pool[: workload.rows])
        bare_sides = {name: _bare_rate(members, batches, effort) for name, members in bare.items()}
        served_sides = {
            str(hosting): throughput(target, workload.connections, effort.seconds, WARM)
            for hosting, target in targets.items()
        }
        found = alternate({**bare_sides, **served_sides}, effort.rounds)
    served = {hosting: [workload.rows * rate for rate in found[str(hosting)]] for hosting in Hosting}
    return Outcome({name: found[name] for name in bare}, served, batches)


def _bare_rate(members: BareMembers, batches: Sequence[int], effort: Effort) -> Callable[[], float]:
    return lambda: members.rows_per_second(batches, effort.seconds)


def _best(bare: Mapping[str, BareMembers], sizes: Sequence[int], effort: Effort) -> list[int]:
    """The best batch sizes under the loader that is faster at its own best."""
    seconds = min(SCAN, effort.seconds)
    choices = {name: members.best_batches(sizes, seconds) for name, members in bare.items()}
    rates = {name: bare[name].rows_per_second(choices[name], effort.seconds) for name in bare}
    return choices[max(rates, key=lambda name: rates[name])]
