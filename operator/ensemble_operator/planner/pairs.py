"""Members that stand on two devices: a GPU, or any device, and a set of cores beside it.

A pair of devices is planned as one device of a type of its own, `A100:cpu-1`: it has the first one's memory, and a
batch keeps both busy until it is done, which is at least as long as it really does. So a partitioned cell offers less
memory for more time, and competes with whole cells by the rate of the whole plan: the problem is solved with no member
partitioned, with all that can be, and from there with one fewer at a time as long as that is better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from ensemble_operator.api.objective import Goal
from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Profile
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError

Solve = Callable[[Problem], list[Plan]]


def pair_type(first: str, second: str) -> str:
    """What profiles of a member on a pair are keyed by."""
    return f"{first}:{second}"


def is_pair(type_: str) -> bool:
    """Whether a type is that of pairs."""
    return ":cpu-" in type_


def pair_types(devices: Sequence[Device]) -> tuple[str, ...]:
    """The types of all pairs that these devices make."""
    return tuple(dict.fromkeys(pair_type(a.type, b.type) for a, b in _paired(devices)))


def possible_pair_types(devices: Sequence[Device]) -> tuple[str, ...]:
    """The types of pairs that devices of these types could make, whichever nodes they are on."""
    cores = [device.type for device in devices if device.kind is DeviceKind.CPU]
    scarce = [device.type for device in devices if device.kind is not DeviceKind.CPU]
    return tuple(dict.fromkeys(pair_type(a, b) for a in scarce or cores for b in cores))


def pair_of(devices: Sequence[Device], type_: str) -> tuple[Device, Device]:
    """The first pair of a type."""
    return next(pair for pair in _paired(devices) if pair_type(pair[0].type, pair[1].type) == type_)


def compete(problem: Problem, solve: Solve) -> list[Plan]:
    """Plans of the problem, partitioned members and whole ones against each other, the best first.

    Args:
        problem: Members that can be partitioned have profiles on types of pairs.
        solve: Plans a problem in which pairs are devices like any other.

    Raises:
        EnsembleError: Nothing fits, or no plan meets the objective.
    """
    able = [member.name for member in problem.members if member.pairs]
    alone = dataclasses.replace(problem, members=tuple(_whole(member) for member in problem.members))
    failure: EnsembleError | None = None
    found: list[Plan] = []
    try:
        found += solve(alone)
    except EnsembleError as error:
        failure = error
    split = frozenset(able)
    best = _solved(problem, split, solve)
    found += best
    while best and len(split) > 1:
        fewer = [(_solved(problem, split - {name}, solve), split - {name}) for name in sorted(split)]
        plans, rest = max(((p, s) for p, s in fewer if p), key=lambda pair: _worth(pair[0][0]), default=([], split))
        if not plans or _worth(plans[0]) <= _worth(best[0]):
            break
        best, split = plans, rest
        found += best
    if not found:
        assert failure is not None, "a problem without a plan says why"
        raise failure
    bound = max(plan.bound for plan in found)
    ranked = sorted(found, key=lambda plan: (tuple(-x for x in _worth(plan)), bool(plan.problem.companions)))
    return [dataclasses.replace(plan, bound=bound) for plan in ranked]


def _solved(problem: Problem, split: frozenset[str], solve: Solve) -> list[Plan]:
    """Plans with some members partitioned; none where they do not fit or miss the objective."""
    paired = with_pairs(problem, split)
    if paired is None:
        return []
    try:
        return [plan for plan in solve(paired) if _companions_hold(plan)]
    except EnsembleError:
        return []


def with_pairs(problem: Problem, split: frozenset[str]) -> Problem | None:
    """The problem with pairs for devices; None where there is no pair that any of these members has a profile on."""
    wanted = {type_ for member in problem.members if member.name in split for type_ in member.pairs}
    pairs = {
        (first.node, first.name): (first, second)
        for first, second in _paired(problem.devices)
        if pair_type(first.type, second.type) in wanted
    }
    if not pairs:
        return None
    taken = {(second.node, second.name) for _, second in pairs.values()}
    devices = tuple(
        dataclasses.replace(device, type=pair_type(device.type, pairs[key][1].type)) if key in pairs else device
        for device in problem.devices
        if (key := (device.node, device.name)) not in taken
    )
    whole_type = {pair_type(first.type, second.type): first.type for first, second in pairs.values()}
    interference = dict(problem.interference)
    for type_, first in whole_type.items():
        interference |= {(type_, a, b): f for (t, a, b), f in problem.interference.items() if t == first}
    return dataclasses.replace(
        problem,
        devices=devices,
        members=tuple(_member(member, member.name in split, whole_type) for member in problem.members),
        interference=interference,
        companions={key: second for key, (_, second) in pairs.items()},
        split=split,
    )


def _paired(devices: Sequence[Device]) -> Iterator[tuple[Device, Device]]:
    """Each device that is scarce with cores of its own beside it; cores are scarce where there is nothing else."""
    for node in dict.fromkeys(device.node for device in devices):
        here = [device for device in devices if device.node == node]
        cores = [device for device in here if device.kind is DeviceKind.CPU]
        scarce = [device for device in here if device.kind is not DeviceKind.CPU]
        if not scarce:
            scarce, cores = cores[::2], cores[1::2]
        yield from zip(scarce, cores, strict=False)


def _whole(member: PlanMember) -> PlanMember:
    return dataclasses.replace(member, pairs={})


def _member(member: PlanMember, split: bool, whole_type: Mapping[str, str]) -> PlanMember:
    """A member with profiles on pairs: its own, or as if the second device were not there."""
    profiles: dict[str, Profile] = dict(member.profiles)
    for type_, first in whole_type.items():
        if split and type_ in member.pairs:
            profiles[type_] = member.pairs[type_]
        elif first in member.profiles:
            profiles[type_] = dataclasses.replace(member.profiles[first], device_type=type_)
    return PlanMember(member.name, profiles)


def _companions_hold(plan: Plan) -> bool:
    """Whether the cores' memory is enough for what partitioned cells keep there."""
    problem = plan.problem
    members = {member.name: member for member in problem.members}
    for key, second in problem.companions.items():
        cells = [(d, members[m], b) for d, m, b in plan.cells if (d.node, d.name) == key and m in problem.split]
        points = [member.profiles[device.type].at(batch) for device, member, batch in cells]
        if sum(point.second_bytes for point in points if point) > second.memory_bytes:
            return False
    return True


def _worth(plan: Plan) -> tuple[float, ...]:
    """How good a plan is by its objective; more is better."""
    goal = plan.problem.objective.goal
    if goal is Goal.FEWEST_DEVICES:
        used = {(device.node, device.name) for device, _, _ in plan.cells}
        return (-float(len(used) + len(used & set(plan.problem.companions))), plan.rate)
    if goal is Goal.GOODPUT:
        return plan.goodput or 0.0, plan.rate
    if goal is Goal.LATENCY:
        return -(plan.p99_seconds or 0.0), plan.rate
    return (plan.rate,)
