"""Why a plan is as it is: plain data, for the terminal, for HTML and for programs alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.instance import Instance, Matrix, build, mib
from ensemble_operator.planner.knapsack import refit
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.planner.throughput import Steady, steady
from ensemble_runtime.errors import ManifestError, OutOfMemoryError

_ALTERNATIVES = 24
"""Devices to try a cell on when its place is explained."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a device's time and memory go to."""

    node: str
    name: str
    type: str
    time: float
    """Share of its time that it is busy; above 1 where co-located members were measured to overlap."""
    memory_mib: int
    of_mib: int
    worth: float
    """Fraction by which the rate rises for each further fraction of this device's time; 0 where it has time to
    spare."""


@dataclass(frozen=True, slots=True)
class CellReason:
    """Why a cell is where it is."""

    device: str
    member: str
    batch_size: int
    time: float
    """Share of the device's time."""
    rate: float
    """Rows per second that it does."""
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan's reasons."""

    bottleneck: str
    devices: tuple[DeviceUse, ...]
    cells: tuple[CellReason, ...]


@dataclass(frozen=True, slots=True)
class OneMore:
    """What one more device of a type would bring."""

    type: str
    rate: float
    """Rows per second with it."""
    gain: float
    """That rate over the plan's."""


def explain(plan: Plan) -> Explanation:
    """Say what limits a plan, what each device is used for, and why each cell is where it is."""
    instance = build(plan.problem, every_batch=True)
    matrix = instance.matrix(plan.matrix)
    state = steady(instance, matrix)
    used, busy = instance.bytes_used(matrix), np.bincount(state.cell_device, state.busy, len(matrix))
    uses = [
        DeviceUse(
            device.node,
            device.name,
            device.type,
            float(busy[i]),
            mib(int(used[i])),
            device.memory_bytes // 2**20,
            float(state.device_price[i]),
        )
        for i, device in enumerate(instance.devices)
    ]
    return Explanation(_bottleneck(instance, state), tuple(uses), tuple(_cells(instance, matrix, state)))


def one_more(plan: Plan, *, evaluations: int = 500) -> tuple[OneMore, ...]:
    """Plan again, from the plan on, with one more device of each type on a node that has one; best first."""
    outcomes = []
    there = {(device.node, device.name, member): batch for device, member, batch in plan.cells}
    for type_ in sorted({d.type for d in plan.problem.devices}):
        question = dataclasses.replace(what_if(plan.problem, {type_: 1}), running=there, move_cost=0.0)
        richer = make_plan(question, evaluations=evaluations)
        rate = max(richer.rate, plan.rate)
        outcomes.append(OneMore(type_, rate, rate / plan.rate))
    return tuple(sorted(outcomes, key=lambda o: -o.rate))


def what_if(problem: Problem, change: Mapping[str, int]) -> Problem:
    """The problem with more (+) or fewer (-) devices of a type: copies of one that is there, or the last ones removed.

    Raises:
        ManifestError: There is no device of the type, or not as many to remove.
    """
    devices = list(problem.devices)
    for type_, count in change.items():
        alike = [d for d in devices if d.type == type_]
        if not alike or len(alike) + count < 0:
            types = ", ".join(sorted({d.type for d in problem.devices}))
            raise ManifestError(f"what-if: no {abs(count)} devices of type '{type_}' to change; there are {types}")
        names = {d.name for d in devices}
        fresh = [n for i in range(len(names) + max(count, 0)) if (n := f"{type_.lower()}-more-{i}") not in names]
        devices += [dataclasses.replace(alike[0], name=n, uuid=None, source="what-if") for n in fresh[: max(count, 0)]]
        for gone in alike[len(alike) + count :] if count < 0 else ():
            devices.remove(gone)
    return dataclasses.replace(problem, devices=tuple(devices))


def curve(problem: Problem, *, points: int = 8, evaluations: int = 300) -> tuple[tuple[int, float], ...]:
    """Rate against devices: (devices, rows per second), for growing parts of the devices in canonical order.

    Numbers of devices into which the members do not fit are left out.
    """
    instance = build(problem)
    count = len(instance.devices)
    sizes = sorted({max(1, round(count * (i + 1) / points)) for i in range(points)})
    out: list[tuple[int, float]] = []
    for size in sizes:
        try:
            part = dataclasses.replace(problem, devices=_spread(instance.devices, size))
            rate = make_plan(part, evaluations=evaluations).rate
        except (OutOfMemoryError, ManifestError):
            continue
        out.append((size, max([rate, *(r for _, r in out)])))
    return tuple(out)


def _spread(devices: tuple[Device, ...], size: int) -> tuple[Device, ...]:
    """So many devices, every type in proportion."""
    return tuple(devices[i] for i in sorted({i * len(devices) // size for i in range(size)}))


def _name(instance: Instance, member: int) -> str:
    return instance.problem.members[instance.member_order[member]].name


def _bottleneck(instance: Instance, state: Steady) -> str:
    worth = np.bincount(instance.type_of, weights=state.device_price, minlength=len(instance.capacity))
    names = [(float(worth[t]), instance.devices[int(np.argmax(instance.type_of == t))].type) for t in range(len(worth))]
    members = [(float(p) / state.seconds, _name(instance, m)) for m, p in enumerate(state.member_price)]
    time = ", ".join(f"{name} {share:.0%}" for share, name in sorted(names, reverse=True) if share >= 0.005)
    rows = ", ".join(f"{name} {share:.0%}" for share, name in sorted(members, reverse=True)[:3] if share >= 0.005)
    return f"device time that limits the rate: {time}; members that it goes to: {rows}"


def _cells(instance: Instance, matrix: Matrix, state: Steady) -> list[CellReason]:
    out, known = [], {}
    for device, member, busy, work in zip(state.cell_device, state.cell_member, state.busy, state.work, strict=True):
        d, m = int(device), int(member)
        like = (int(instance.type_of[d]), matrix[d].tobytes(), m)
        if like not in known:
            known[like] = _reason(instance, matrix, state, d, m)
        batch = int(instance.batch[instance.type_of[d], m, matrix[d, m] - 1])
        name = instance.devices[d].name
        out.append(CellReason(name, _name(instance, m), batch, float(busy), float(work) * state.rate, known[like]))
    return out


def _reason(instance: Instance, matrix: Matrix, state: Steady, d: int, m: int) -> str:
    """What the rate would be without the cell, or with it on the best other device."""
    without = matrix.copy()
    without[d, m] = 0
    if without[:, m].any():
        lost = 1 - steady(instance, without).rate / state.rate
        return f"without it the rate falls by {lost:.1%}" if lost > 5e-4 else "spare: the rate does not need it"
    rates = []
    for e in _one_of_each(instance, matrix):
        if e == d or not instance.options[instance.type_of[e], m]:
            continue
        moved = without.copy()
        moved[e, m] = 1
        if refit(instance, moved, e, np.ones(matrix.shape[1])):
            rates.append((steady(instance, moved).rate, instance.devices[e].name))
    if not rates:
        return "it fits on no other device beside what is there"
    rate, other = max(rates)
    if rate >= state.rate * (1 - 5e-4):
        return f"as good as on '{other}'"
    return f"on '{other}', the next best, the rate falls by {1 - rate / state.rate:.1%}"


def _one_of_each(instance: Instance, matrix: Matrix) -> list[int]:
    keyed = np.column_stack([instance.type_of, matrix])
    return sorted(np.unique(keyed, axis=0, return_index=True)[1].tolist())[:_ALTERNATIVES]
