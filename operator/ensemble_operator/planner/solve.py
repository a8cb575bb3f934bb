"""The planner's way in: a problem becomes a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from ensemble_operator.api.objective import Goal
from ensemble_operator.planner import objectives
from ensemble_operator.planner.baseline import baseline
from ensemble_operator.planner.campaign import Progress, begin, campaign, settled
from ensemble_operator.planner.exact import exact, relaxed
from ensemble_operator.planner.instance import Floats, Instance, build
from ensemble_operator.planner.nodes import restrict, widen
from ensemble_operator.planner.pack import pack
from ensemble_operator.planner.pairs import compete
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.score import Scored, prune, score
from ensemble_operator.planner.search import Budget

EVALUATIONS = 2_000


def make_plan(
    problem: Problem,
    *,
    seed: int = 0,
    evaluations: int = EVALUATIONS,
    exact_nodes: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Plan:
    """Find the best matrix for a problem; the same input gives the same plan, byte for byte.

    Args:
        problem: Devices, members with their profiles, and the objective.
        seed: Of the search's random choices.
        evaluations: Most matrices to evaluate.
        exact_nodes: Above 0, finish with the integer program over so many branch-and-bound nodes: small problems are
            then solved to the optimum, and the bound of any becomes tighter.
        stop: Asked often; once true, the best plan so far is returned (for a time limit or Ctrl-C).
        progress: Told after each descent.

    Returns:
        The plan.

    Raises:
        OutOfMemoryError: The members do not fit into the devices' memory; the message states the shortfall.
        ManifestError: A member has no profile on any of the devices.
        EnsembleError: No plan meets the objective's rate or p99.
    """
    return candidates(
        problem, 1, seed=seed, evaluations=evaluations, exact_nodes=exact_nodes, stop=stop, progress=progress
    )[0]


def candidates(
    problem: Problem,
    count: int,
    *,
    seed: int = 0,
    evaluations: int = EVALUATIONS,
    exact_nodes: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Plan]:
    """The best few different plans, best first, for measuring them live; arguments as in `make_plan`."""
    if any(member.pairs for member in problem.members):
        again = partial(
            candidates,
            count=count,
            seed=seed,
            evaluations=evaluations,
            exact_nodes=exact_nodes,
            stop=stop,
            progress=progress,
        )
        return compete(problem, again)[:count]
    whole = build(problem)
    base = score(whole, baseline(whole, pack(whole)))
    bound = relaxed(whole).bound
    budget = Budget(evaluations, stop)
    random = np.random.default_rng(seed)
    search = objectives.Search(whole, build(problem, every_batch=True), bound, budget, random, progress)
    goal = problem.objective.goal
    if goal is Goal.FEWEST_DEVICES:
        return [_plan(base, bound, objectives.fewest_devices(search))]
    if goal is not Goal.THROUGHPUT:
        return [_plan(base, bound, objectives.responsive(search))]
    devices, starts = begin(whole)
    ends = campaign(restrict(whole, devices), starts, bound, budget, random, progress)
    found = [base, *(score(whole, widen(whole, devices, end.matrix)) for end in ends)]
    if exact_nodes:
        proven = exact(whole, node_limit=exact_nodes)
        bound = min(bound, proven.bound)
        found += [score(whole, proven.matrix)] if proven.matrix is not None else []
    likely = sorted(found, key=lambda s: (-s.score, -s.slack, s.matrix.tobytes()))[: 4 * count]
    tidy = (settled(whole, prune(whole, end)) for end in likely)
    distinct = {end.matrix.tobytes(): end for end in (*tidy, base)}.values()
    best = sorted(distinct, key=lambda s: (-s.score, -s.slack, s.matrix.tobytes()))
    return [finish(whole, end, base.steady.rate, bound) for end in best[:count]]


def _plan(base: Scored, bound: float, answer: objectives.Answer) -> Plan:
    plan = finish(answer.instance, answer.end, base.steady.rate, bound)
    return dataclasses.replace(
        plan, p99_seconds=answer.p99_seconds, goodput=answer.goodput, fewest_devices=answer.fewest_devices
    )


def finish(instance: Instance, best: Scored, baseline_rate: float, bound: float) -> Plan:
    """Put a scored matrix back into the problem's words."""
    problem, state = instance.problem, best.steady
    at = np.asarray(instance.device_order)[state.cell_device], np.asarray(instance.member_order)[state.cell_member]
    shares, work = np.zeros(instance.shape), np.zeros(instance.shape)
    shares[at], work[at] = state.busy, state.work
    return Plan(
        problem=problem,
        matrix=instance.batches(best.matrix),
        shares=_rounded(shares),
        work=_rounded(work),
        rate=state.rate,
        bound=max(bound, state.rate),
        baseline_rate=baseline_rate,
        bottleneck=instance.devices[int(np.argmax(state.device_price))].name,
        bottleneck_member=problem.members[instance.member_order[int(np.argmax(state.member_price))]].name,
    )


def _rounded(values: Floats) -> tuple[tuple[float, ...], ...]:
    """Nine digits: what is beyond is rounding, and would make like plans differ."""
    return tuple(tuple(float(f"{value:.9g}") for value in row) for row in values.tolist())
