"""Problems for the planner's benchmarks and tests, drawn from a seed.

Costs follow a stated law: b rows take (setup + b * row) / speed seconds and holds model + b * working bytes.
"""

from __future__ import annotations

import numpy as np

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

GIB = 2**30
BATCHES = (1, 8, 16, 32, 64, 128)
TYPES = {
    "fast-40g": (DeviceKind.GPU, 1.0, 40),
    "middle-24g": (DeviceKind.GPU, 0.5, 24),
    "slow-16g": (DeviceKind.GPU, 0.25, 16),
    "cpu-8": (DeviceKind.CPU, 0.02, 64),
}
"""Type -> kind, speed, GiB."""


def devices(types: list[str], *, per_node: int = 4) -> tuple[Device, ...]:
    return tuple(
        Device(f"d{i}", f"n{i // per_node:03}", TYPES[t][0], t, TYPES[t][2] * GIB) for i, t in enumerate(types)
    )


def members(random: np.random.Generator, gib: list[float], *, prefix: str = "m") -> tuple[PlanMember, ...]:
    """One member for each of the sizes, which hold at 64 rows a batch; half of it is the model."""
    out = []
    for i, size in enumerate(gib):
        row, setup = 10 ** random.uniform(-3.3, -1.8), 10 ** random.uniform(-3, -1.7)
        profiles = {}
        for name, (_, speed, _) in TYPES.items():
            fit = speed * random.uniform(0.7, 1.3)
            points = tuple(Point(b, (setup + row * b) / fit, int(size * GIB * (0.5 + b / 128))) for b in BATCHES)
            profiles[name] = Profile(f"{prefix}{i}", name, "FP32", points)
        out.append(PlanMember(f"{prefix}{i:03}", profiles))
    return tuple(out)


def random_problem(seed: int, *, max_devices: int = 8, max_members: int = 12) -> Problem:
    """Up to so many devices of four types and members, from roomy to crowded memory."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, max_devices + 1))
    names = list(TYPES)
    picked = [names[k] for k in random.choice(4, size=count, p=[0.35, 0.3, 0.2, 0.15])]
    if set(picked) == {"cpu-8"}:
        picked[0] = "fast-40g"
    there = devices(picked)
    total = sum(d.memory_bytes for d in there) / GIB
    sizes = random.lognormal(0, 0.6, int(random.integers(1, max_members + 1)))
    sizes *= min(random.uniform(0.3, 0.95) * total / sizes.sum(), 14 / sizes.max())
    return Problem(there, members(random, sizes.tolist()), node_cost=0.0)
