"""A data centre: 100 members on 1,000 GPUs of 3 types over 200 nodes, planned on one core.

python benchmarks/planner_scale.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from planner_cases import devices, members

from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=200, help="of 5 GPUs of one type each")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    print("seed  rows/s     bound  gap %   gain  seconds  cells  nodes  nodes/member")
    for seed in range(options.runs):
        random = np.random.default_rng(seed)
        kinds = ("fast-40g", "middle-24g", "slow-16g")
        types = [kinds[k] for k in random.integers(0, 3, options.nodes) for _ in range(5)]
        sizes = random.uniform(1, 14, options.members).tolist()
        problem = Problem(devices(types, per_node=5), members(random, sizes))
        start, processor = time.perf_counter(), time.process_time()
        plan = make_plan(problem)
        spent, processor = time.perf_counter() - start, time.process_time() - processor
        nodes = {d.node for d, _, _ in plan.cells}
        spans = len({(d.node, m) for d, m, _ in plan.cells}) / len(problem.members)
        print(
            f"{seed:4d} {plan.rate:8.1f} {plan.bound:9.1f} {100 * plan.gap:6.3f} {plan.gain:6.2f} {spent:8.2f} "
            f"({processor:.2f} on the processor) {len(plan.cells):6d} {len(nodes):6d} {spans:8.2f}"
        )


if __name__ == "__main__":
    main()
