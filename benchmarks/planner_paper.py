"""Cases like the paper's: 1, 4 and 12 members on 1 to 16 GPUs, with CPUs; the gain over the best-batch-size baseline.

    python benchmarks/planner_paper.py

Gains above the paper's 2.7 are marked with a star and named at the end.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from planner_cases import devices, members

from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import OutOfMemoryError

HEAVY_GIB = (8.0, 12.0)
"""Heavy members: between 8 and 12 GiB each at 64 rows a batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of each case")
    options = parser.parse_args()
    beyond = []
    print("members GPUs CPUs  kind     seed    rows/s     bound   gap %  baseline   gain  seconds")
    for count in (1, 4, 12):
        for gpus in (1, 2, 4, 8, 16):
            for kind in ("alike", "mixed"):
                for seed in range(options.seeds):
                    random = np.random.default_rng([count, gpus, seed])
                    kinds = ["fast-40g"] if kind == "alike" else ["fast-40g", "middle-24g", "slow-16g"]
                    types = [kinds[i % len(kinds)] for i in range(gpus)] + ["cpu-8"] * max(1, gpus // 4)
                    sizes = random.uniform(*HEAVY_GIB, count).tolist()
                    problem = Problem(devices(types, per_node=8), members(random, sizes))
                    name = f"{count:7d} {gpus:4d} {len(types) - gpus:4d}  {kind:8s} {seed:4d}"
                    start = time.perf_counter()
                    try:
                        plan = make_plan(problem)
                    except OutOfMemoryError as error:
                        print(f"{name}  does not fit, short of {str(error).rpartition('short of ')[2].split('.')[0]}")
                        continue
                    spent = time.perf_counter() - start
                    star = "*" if plan.gain > 2.7 else " "
                    if plan.gain > 2.7:
                        beyond.append(f"{count} on {gpus} {kind} ({plan.gain:.1f}×)")
                    print(
                        f"{name} {plan.rate:9.2f} {plan.bound:9.2f} {100 * plan.gap:7.3f} {plan.baseline_rate:9.2f} "
                        f"{plan.gain:6.2f}{star} {spent:7.2f}",
                        flush=True,
                    )
    print(f"gain above 2.7: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
