"""Costs of a GPU that is not there: stated against those that were measured on the CPU. For planning only."""

from __future__ import annotations

from pydantic import Field

from ensemble_runtime.config import Schema
from ensemble_runtime.partition.costs import Seconds
from ensemble_runtime.partition.graph import Graph
from ensemble_runtime.partition.instance import Link


class SimulatedGpu(Schema):
    """How much faster than the measured cores it is, and how far away."""

    speedup: float = Field(8.0, gt=0, description="Of an operator that `speedups` does not name.")
    speedups: dict[str, float] = Field({}, description="By operator type, e.g. LSTM: a GPU gains little on few rows.")
    launch_us: float = Field(8.0, ge=0, description="Added to each operator.")
    latency_us: float = Field(15.0, ge=0, description="Of a copy, either way.")
    gib_per_second: float = Field(12.0, gt=0, description="Of a copy, either way.")

    def seconds(self, graph: Graph, measured: Seconds) -> Seconds:
        """Of each operator of a graph; what takes no time on the CPU takes none here."""
        return {
            name: seconds / self.speedups.get(graph.by_name[name].op_type, self.speedup) + self.launch_us / 1e6
            if seconds
            else 0.0
            for name, seconds in measured.items()
        }

    @property
    def link(self) -> Link:
        """Either direction."""
        return Link(self.latency_us / 1e6, 1 / (self.gib_per_second * 2**30))
