"""Whether the pipeline keeps the plan's promise: simulated devices at full load against the predicted throughput."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
from common import Effort, Report, alternate, main, verdict
from load import infer, throughput
from serving import runtime

from ensemble_operator.inventory.device import Device as PlannedDevice
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import (
    Cell,
    Datatype,
    Device,
    DeviceKind,
    Hosting,
    Member,
    ModelFormat,
    ModelSource,
    RuntimeConfig,
    Serving,
    TensorSpec,
)

KIND, MEMORY = "simulated-gpu", 16 * 2**30
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
INPUT = TensorSpec(name="x", datatype=Datatype.FP32, shape=(8,))
OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(10,))
ROWS = 32
QUEUE_ROWS = 8192
BATCHES_IN_FLIGHT = 2
"""Rows on their way, in full batches of all the cells of the member that has the most of them."""
WARM = 8.0
TARGET = 0.95


@dataclass(frozen=True)
class Cost:
    """A heavy member: a batch takes `start` seconds and `each` more a row; it holds `memory` bytes."""

    start: float
    each: float
    memory: int

    def seconds(self, size: int) -> float:
        """Of one batch."""
        return self.start + self.each * size


def members(count: int) -> dict[str, Cost]:
    """Members of different weight, from about 300 to 2,000 rows/s on a device of their own."""
    random = np.random.default_rng(count)
    return {
        f"member-{i}": Cost(
            start=float(random.uniform(0.005, 0.02)),
            each=float(random.uniform(0.0005, 0.003)),
            memory=int(random.integers(2, 4)) * 2**30,
        )
        for i in range(count)
    }


def plan_for(costs: dict[str, Cost], devices: int) -> Plan:
    """What the planner makes of it."""
    machines = tuple(PlannedDevice(f"gpu-{i}", "here", DeviceKind.SIMULATED, KIND, MEMORY) for i in range(devices))
    planned = tuple(
        PlanMember(name, {KIND: Profile(name, KIND, "FP32", tuple(Point(s, c.seconds(s), c.memory) for s in SIZES))})
        for name, c in costs.items()
    )
    return make_plan(Problem(machines, planned))


def configuration(costs: dict[str, Cost], plan: Plan, hosting: Hosting) -> RuntimeConfig:
    """A runtime for the plan, whose devices sleep for as long as the profiles state."""
    stated = {name: {size: cost.seconds(size) for size in SIZES} for name, cost in costs.items()}
    used = dict.fromkeys(device.name for device, _, _ in plan.cells)
    nothing = ModelSource(uri="file:///none.onnx", format=ModelFormat.ONNX)
    return RuntimeConfig(
        name="heavy",
        members=tuple(Member(name=name, model=nothing) for name in costs),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        devices=tuple(
            Device(name=name, kind=DeviceKind.SIMULATED, type=KIND, memory_bytes=MEMORY, seconds=stated)
            for name in used
        ),
        cells=tuple(Cell(device=device.name, member=name, batch_size=size) for device, name, size in plan.cells),
        serving=Serving(hosting=hosting, queue_rows=QUEUE_ROWS),
        predicted_rows_per_second=plan.rate,
    )


def simulated(effort: Effort) -> Report:
    """Both of the issue's cases, with one process a cell and one a device."""
    rows = []
    for count, devices in ((12, 4), (1, 16)):
        costs = members(count)
        plan = plan_for(costs, devices)
        for hosting in Hosting:
            config = configuration(costs, plan, hosting)
            reached = _reached(config, _connections(plan), f"{count} on {devices}, {hosting}", effort)
            share = reached / plan.rate
            rows.append(
                [
                    f"{count} on {devices}",
                    str(len(plan.cells)),
                    str(hosting),
                    f"{plan.rate:.1f}",
                    f"{reached:.1f}",
                    f"{share:.3f} ({verdict(share, TARGET)})",
                ]
            )
    return Report(
        f"Heavy members on simulated devices, planned by the planner from the stated seconds; requests of {ROWS} rows, "
        f"as many connections as keep {BATCHES_IN_FLIGHT} full batches a cell on their way; {WARM:g} s to fill the "
        f"queues, then the median of {effort.rounds} runs of {effort.seconds:g} s.",
        ["members on devices", "cells", "hosting", "predicted rows/s", "reached rows/s", "ratio"],
        rows,
    )


def _connections(plan: Plan) -> int:
    rows: int = max(sum(column) for column in zip(*plan.matrix, strict=True))
    return min(BATCHES_IN_FLIGHT * rows, QUEUE_ROWS) // ROWS


def _reached(config: RuntimeConfig, connections: int, side: str, effort: Effort) -> float:
    body = np.random.default_rng(0).random((ROWS, *INPUT.shape), dtype=np.float32)
    with runtime(config) as (base, _):
        target = infer(base, config.name, body)
        load = {side: throughput(target, connections, effort.seconds, WARM)}
        return ROWS * median(alternate(load, effort.rounds)[side])


if __name__ == "__main__":
    main(simulated, seconds=40, rounds=1)
