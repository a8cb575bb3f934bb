"""How far the planner is from the optimum: random instances, each planned and then solved as an integer program.

    python benchmarks/planner_sweep.py --count 300

An instance's optimum is the better of both answers where the integer program ended, its upper bound where it did not.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from planner_cases import random_problem

from ensemble_operator.planner.exact import exact
from ensemble_operator.planner.instance import build
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import OutOfMemoryError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="instances, of up to 8 devices and 12 members")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--nodes", type=int, default=200, help="branch-and-bound nodes for each")
    options = parser.parse_args()
    gaps, seconds, gains, refused, open_ = [], [], [], 0, 0
    print("seed devices members    rows/s   optimum    gap %  gain  plan s  exact s")
    for seed in range(options.first, options.first + options.count):
        problem = random_problem(seed)
        shape = f"{seed:4d} {len(problem.devices):7d} {len(problem.members):7d}"
        start = time.perf_counter()
        try:
            plan = make_plan(problem)
        except OutOfMemoryError as error:
            refused += 1
            print(f"{shape}  does not fit, short of {str(error).rpartition('short of ')[2]}", flush=True)
            continue
        middle = time.perf_counter()
        proof = exact(build(problem), node_limit=options.nodes, gap=1e-3)
        end = time.perf_counter()
        optimum = max(proof.bound, plan.rate)
        gaps.append(100 * (1 - plan.rate / optimum))
        open_ += gaps[-1] > 1
        seconds.append(middle - start)
        gains.append(plan.gain)
        print(
            f"{shape} {plan.rate:9.2f} {optimum:9.2f} {gaps[-1]:8.3f} {plan.gain:5.2f} "
            f"{middle - start:7.2f} {end - middle:8.2f}",
            flush=True,
        )
    for name, values in (("gap %", gaps), ("seconds to plan", seconds), ("gain over the baseline", gains)):
        points = np.percentile(values, [0, 50, 90, 95, 99, 100])
        print(f"{name:24s} min {points[0]:.3f}  p50 {points[1]:.3f}  p90 {points[2]:.3f}  p95 {points[3]:.3f}", end="")
        print(f"  p99 {points[4]:.3f}  max {points[5]:.3f}")
    near = f"{len(gaps) - open_} of {len(gaps)}"
    print(f"{len(gaps)} planned, {refused} proven not to fit; within 1 % of the optimum: {near}")


if __name__ == "__main__":
    main()
