"""The planner, remembering its answers: like questions, whatever the names in them, are answered once.

A thousand ensembles of the same models on like nodes are one question. So the memory is by what the planner makes use
of, and names are put back into its answer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Hashable

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.pairs import with_pairs
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import EnsembleError

_REMEMBERED = 20_000


class Solver:
    """Plans problems until a moment; after it the first plan that fits will do."""

    def __init__(self) -> None:
        self.until = 0.0
        """Of the monotonic clock."""
        self._plain: dict[Hashable, Plan | EnsembleError] = {}
        self._named: dict[Hashable, tuple[Problem, Plan]] = {}

    def __call__(self, problem: Problem) -> Plan:
        """The plan of a problem.

        Raises:
            EnsembleError: There is none; a like problem is refused again without a search.
        """
        exact = _exact(problem)
        if (known := self._named.pop(exact, None)) is not None:
            self._named[exact] = known
            return known[1]
        found = self._solved(problem)
        places = {_device_name(i): device.name for i, device in enumerate(problem.devices)}
        members = {_member_name(i): member.name for i, member in enumerate(problem.members)}
        # Where members are partitioned, the plan's rows are pairs of devices.
        split = frozenset(members[name] for name in found.problem.split)
        paired = with_pairs(problem, split) if found.problem.companions else problem
        assert paired is not None, "what pairs there are does not depend on names"
        plan = dataclasses.replace(
            found,
            problem=paired,
            bottleneck=places[found.bottleneck],
            bottleneck_member=members[found.bottleneck_member],
        )
        self._named[exact] = (problem, plan)
        while len(self._named) > _REMEMBERED:
            del self._named[next(iter(self._named))]
        return plan

    def _solved(self, problem: Problem) -> Plan:
        plain = _plain(problem)
        key = _key(plain)
        known = self._plain.pop(key, None)
        if known is None:
            known = self._search(plain)
            if isinstance(known, Plan) and time.monotonic() >= self.until:
                return known  # cut short: with more time there may be a better one
        self._plain[key] = known
        while len(self._plain) > _REMEMBERED:
            del self._plain[next(iter(self._plain))]
        if isinstance(known, EnsembleError):
            raise known.with_traceback(None)
        return known

    def _search(self, problem: Problem) -> Plan | EnsembleError:
        try:
            return make_plan(problem, stop=lambda: time.monotonic() >= self.until)
        except EnsembleError as error:
            return error


def _plain(problem: Problem) -> Problem:
    """The problem with names that tell nothing but the order."""
    nodes: dict[str, str] = {}
    devices = tuple(
        Device(_device_name(i), nodes.setdefault(d.node, f"n{len(nodes):04}"), d.kind, d.type, d.memory_bytes)
        for i, d in enumerate(problem.devices)
    )
    names = {m.name: _member_name(i) for i, m in enumerate(problem.members)}
    places = {(d.node, d.name): (p.node, p.name) for d, p in zip(problem.devices, devices, strict=True)}
    return dataclasses.replace(
        problem,
        devices=devices,
        members=tuple(PlanMember(names[m.name], m.profiles, m.pairs) for m in problem.members),
        interference={
            (kind, names[a], names[b]): factor
            for (kind, a, b), factor in problem.interference.items()
            if a in names and b in names
        },
        running={
            (*places[node, device], names[member]): batch
            for (node, device, member), batch in problem.running.items()
            if (node, device) in places and member in names
        },
    )


def _key(problem: Problem) -> Hashable:
    """All that the planner makes use of."""
    return (
        tuple((d.node, d.kind, d.type, d.memory_bytes) for d in problem.devices),
        tuple((tuple(sorted(m.profiles.items())), tuple(sorted(m.pairs.items()))) for m in problem.members),
        problem.objective,
        tuple(sorted(problem.interference.items())),
        tuple(sorted(problem.running.items())),
    )


def _exact(problem: Problem) -> Hashable:
    """As `_key`, with the names. The members are told by identity: whoever asks again asks with the same ones."""
    return problem.devices, id(problem.members), problem.objective, frozenset(problem.running.items())


def _device_name(place: int) -> str:
    return f"d{place:04}"


def _member_name(place: int) -> str:
    return f"m{place:03}"
