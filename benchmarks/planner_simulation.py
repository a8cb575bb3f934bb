"""The planner's predictions against a simulation of the pipeline: saturated throughput, and p99 under Poisson arrivals.

    python benchmarks/planner_simulation.py

Cells pull freely, as those of the runtime do: a device that comes free serves the member that most rows wait for.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from planner_cases import devices, members, random_problem

from ensemble_operator.planner.instance import build
from ensemble_operator.planner.latency import quantile
from ensemble_operator.planner.pipeline import pipeline
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.score import score
from ensemble_operator.planner.simulate import poisson, saturated
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import OutOfMemoryError


def cases(count: int) -> dict[str, Problem]:
    random = np.random.default_rng(0)
    paper = {
        "12 on 4": Problem(devices(["fast-40g"] * 4), members(random, [10.0] * 12)),
        "1 on 16": Problem(devices(["fast-40g"] * 16, per_node=8), members(random, [10.0])),
    }
    return paper | {f"seed {seed}": random_problem(seed) for seed in range(count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="random problems beside the two of the paper")
    parser.add_argument("--requests", type=int, default=8000)
    options = parser.parse_args()
    pulled, model, spent = [], [], [0.0, 0.0]
    print("case      rows/s  reached   p99 of the model over the simulation's, at load 0.2 0.5 0.8")
    for name, problem in cases(options.count).items():
        try:
            plan = make_plan(problem, evaluations=600)
        except OutOfMemoryError:
            continue
        instance = build(problem, every_batch=True)
        found = score(instance, instance.matrix(plan.matrix))
        drawn = pipeline(instance, found.matrix, found.steady)
        reached = saturated(drawn, clients=512, request_rows=16, requests=options.requests).rate / plan.rate
        pulled.append(reached)
        ratios = []
        for load in (0.2, 0.5, 0.8):
            start = time.perf_counter()
            guess = quantile(drawn, rate=load * plan.rate, request_rows=4)
            middle = time.perf_counter()
            played = poisson(drawn, rate=load * plan.rate, request_rows=4, requests=options.requests).quantile(0.99)
            spent = [spent[0] + middle - start, spent[1] + time.perf_counter() - middle]
            ratios.append(guess / played)
        model += ratios
        print(f"{name:8s} {plan.rate:8.1f} {reached:7.3f}   {np.round(ratios, 2)}", flush=True)
    for label, values in (("reached / predicted", pulled), ("p99 model / simulation", model)):
        low, median, high = np.percentile(values, [0, 50, 100])
        print(f"{label:24s} min {low:.3f}  median {median:.3f}  max {high:.3f}")
    print(f"seconds a p99: model {spent[0] / len(model):.4f}, simulation {spent[1] / len(model):.3f}")


if __name__ == "__main__":
    main()
