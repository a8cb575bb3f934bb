"""What a plan is to be best at."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from ensemble_operator.api.contradiction import refuse
from ensemble_runtime.config import Schema


class Goal(StrEnum):
    """What the planner optimises."""

    THROUGHPUT = "Throughput"
    LATENCY = "Latency"
    GOODPUT = "Goodput"
    FEWEST_DEVICES = "FewestDevices"


_REQUIRED = {
    Goal.THROUGHPUT: (),
    Goal.LATENCY: ("rate",),
    Goal.GOODPUT: ("p99Ms",),
    Goal.FEWEST_DEVICES: ("rate",),
}
_OPTIONAL = {Goal.FEWEST_DEVICES: ("p99Ms",)}


class Objective(Schema):
    """The goal, and the figures that it needs."""

    goal: Goal = Field(
        Goal.THROUGHPUT,
        description=(
            "Throughput: the most rows per second. Latency: the lowest p99 at `rate`. Goodput: the most rows per "
            "second whose p99 stays within `p99Ms`. FewestDevices: the fewest that sustain `rate`, within `p99Ms`."
        ),
    )
    rate: float | None = Field(
        None, gt=0, le=1e9, description="Rows per second that arrive; required by Latency and FewestDevices."
    )
    p99_ms: float | None = Field(
        None, gt=0, le=3_600_000, description="Bound of the 99th percentile of latency; required by Goodput."
    )
    request_rows: int = Field(1, ge=1, le=65_536, description="Rows of a request, where latency is what counts.")

    node_cost: float = Field(
        0.001,
        ge=0,
        le=1,
        description="The fraction by which each further node must raise the rate to be worth crossing to.",
    )
    move_cost: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The fraction by which each started or changed cell must raise a running plan's rate.",
    )

    @model_validator(mode="after")
    def _figures_fit_goal(self) -> Self:
        required, optional = _REQUIRED[self.goal], _OPTIONAL.get(self.goal, ())
        given = {"rate": self.rate, "p99Ms": self.p99_ms}
        missing = [((name,), f"missing; goal {self.goal.value} needs it") for name in required if given[name] is None]
        idle = [
            ((name,), f"goal {self.goal.value} makes no use of it; remove it, or choose another goal")
            for name, value in given.items()
            if value is not None and name not in required + optional
        ]
        refuse(missing + idle)
        return self
