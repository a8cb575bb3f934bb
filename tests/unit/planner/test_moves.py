"""Each kind of move on an instance where it is the one that is needed: with it the search ends at the best matrix there
is, found by trying all of them, and without it the search does not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner import campaign as campaigns
from ensemble_operator.planner import search
from ensemble_operator.planner.campaign import campaign
from ensemble_operator.planner.instance import Instance, Matrix, build
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.score import Scored, score
from ensemble_operator.planner.search import Budget, Move, bounded_greedy, local_search
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind

Start = Sequence[Sequence[int]]
Costs = Mapping[str, Mapping[str, Sequence[tuple[int, float, int]]]]
"""Member -> device type -> points (batch size, seconds a row, bytes)."""


def make_instance(devices: Sequence[tuple[str, int, str]], costs: Costs, **problem: Any) -> Instance:
    """Devices are (type, bytes, node)."""
    there = tuple(Device(f"d{i}", node, DeviceKind.GPU, kind, size) for i, (kind, size, node) in enumerate(devices))
    members = tuple(
        PlanMember(
            name,
            {
                kind: Profile(name, kind, "FP32", tuple(Point(b, seconds * b, size) for b, seconds, size in points))
                for kind, points in by_type.items()
            },
        )
        for name, by_type in costs.items()
    )
    return build(Problem(there, members, **problem))


def best(instance: Instance) -> float:
    """The best score of all matrices."""
    options = [range(int(instance.options[instance.type_of[d], m]) + 1) for d, m in np.ndindex(*instance.shape)]
    found = -math.inf
    for choice in itertools.product(*options):
        matrix = np.array(choice, np.int16).reshape(instance.shape)
        if instance.fits(matrix):
            found = max(found, score(instance, matrix).score)
    return found


def kind_of(move: Move) -> str:
    match len(move.drop), len(move.seat):
        case 0, 1:
            return "one more"
        case 1, 0:
            return "one fewer"
        case 2, 2:
            return "swap"
        case _:
            return "move" if move.drop[0][1] == move.seat[0][1] else "takeover"


def searched(instance: Instance, start: Start) -> Scored:
    matrix = instance.matrix(start)
    assert instance.fits(matrix)
    return local_search(instance, score(instance, matrix), Budget(1000), np.random.default_rng(0))


def one(seconds: float, size: int = 1) -> list[tuple[int, float, int]]:
    return [(1, seconds, size)]


def swapped() -> tuple[Instance, Start]:
    """Full devices, each with the member that the other is good at."""
    costs = {"a": {"s": one(1), "t": one(3)}, "b": {"s": one(3), "t": one(1)}}
    return make_instance([("s", 1, "n"), ("t", 1, "n")], costs), ((0, 1), (1, 0))


def misplaced() -> tuple[Instance, Start]:
    """The better device is on another node, and to be on both costs more than it brings."""
    costs = {"a": {"slow": one(3), "fast": one(2)}}
    return make_instance([("slow", 1, "m"), ("fast", 1, "n")], costs, node_cost=1.0), ((1,), (0,))


def misplaced_replica() -> tuple[Instance, Start]:
    """Two copies are worth their second node, but one of them is on the wrong one."""
    costs = {"a": {"slow": one(1.0), "fast": one(1 / 1.2)}}
    devices = [("slow", 1, "l"), ("slow", 1, "m"), ("fast", 1, "n")]
    return make_instance(devices, costs, node_cost=0.55), ((1,), (1,), (0,))


def taken() -> tuple[Instance, Start]:
    """All devices are full, and the light member has two of them."""
    costs = {"heavy": {"t": one(4)}, "light": {"t": one(1)}}
    return make_instance([("t", 1, "n")] * 3, costs), ((1, 0), (0, 1), (0, 1))


def idle() -> tuple[Instance, Start]:
    """A device does nothing."""
    return make_instance([("t", 1, "n")] * 2, {"a": {"t": one(1)}}), ((1,), (0,))


def crowded() -> tuple[Instance, Start]:
    """A copy that its neighbour suffers from more than it brings."""
    costs = {"a": {"s": one(1), "t": one(1)}, "b": {"s": one(1)}}
    instance = make_instance([("s", 2, "n"), ("t", 1, "n")], costs, interference={("s", "a", "b"): 0.5})
    return instance, ((1, 1), (1, 0))


CASES = {
    "swap": swapped,
    "move": misplaced,
    "move of a replica": misplaced_replica,
    "takeover": taken,
    "one more": idle,
    "one fewer": crowded,
}


@pytest.mark.parametrize("case", CASES)
def test_a_move_that_alone_leads_on_is_made(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, start = CASES[case]()
    optimum = best(instance)
    assert searched(instance, start).score == pytest.approx(optimum)
    every = search._moves

    def all_others(instance: Instance, matrix: Matrix) -> Iterator[Move]:
        return (move for move in every(instance, matrix) if kind_of(move) != case.removesuffix(" of a replica"))

    monkeypatch.setattr(search, "_moves", all_others)
    assert searched(instance, start).score < optimum - 0.01


def test_a_batch_size_that_alone_leads_on_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(1, 2.0, 1), (8, 1.0, 2)]
    instance = make_instance([("t", 2, "n")], {"a": {"t": points}})
    start, optimum = instance.matrix(((1,),)), best(instance)
    assert bounded_greedy(instance, start, Budget(100)).score == pytest.approx(optimum)
    every = search.one_cell_changes

    def only_cells(instance: Instance, matrix: Matrix) -> Iterator[Matrix]:
        return (other for other in every(instance, matrix) if ((other != 0) != (matrix != 0)).any())

    monkeypatch.setattr(search, "one_cell_changes", only_cells)
    assert bounded_greedy(instance, start, Budget(100)).score < optimum - 0.01


def test_a_move_that_fits_only_at_other_batch_sizes_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second member fits beside the first if that makes do with smaller batches."""
    points = [(1, 1.2, 1), (8, 1.0, 3)]
    costs = {"a": {"t": points}, "b": {"t": points}}
    instance = make_instance([("t", 3, "n"), ("t", 3, "n"), ("t", 3, "n")], costs)
    start, optimum = ((8, 0), (0, 8), (0, 8)), best(instance)
    assert searched(instance, start).score == pytest.approx(optimum)

    def as_it_is(instance: Instance, matrix: Matrix, device: int, share: object) -> bool:
        return bool(instance.bytes_used(matrix)[device] <= instance.capacity[instance.type_of[device]])

    monkeypatch.setattr(search, "refit", as_it_is)
    assert searched(instance, start).score < optimum - 0.01


def stuck() -> tuple[Instance, Start]:
    """Three members on three devices, where no single move leads on from the start, and yet it is not the best."""
    costs = {
        "a": {"s": one(6, 2), "t": one(4)},
        "b": {"s": one(2), "t": one(1)},
        "c": {"s": one(2, 3), "t": one(4, 3)},
    }
    return make_instance([("s", 3, "n"), ("t", 3, "n"), ("t", 4, "n")], costs), ((0, 1, 0), (0, 0, 1), (1, 0, 0))


def campaigned(instance: Instance, starts: list[Matrix]) -> float:
    ends = campaign(instance, starts, math.inf, Budget(400), np.random.default_rng(0), lambda _: None)
    return max(end.score for end in ends)


def test_a_search_that_is_stuck_begins_again_from_a_shaken_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    instance, start = stuck()
    starts, optimum = [instance.matrix(start)], best(instance)
    assert campaigned(instance, starts) == pytest.approx(optimum)
    monkeypatch.setattr(campaigns, "shake", lambda instance, at, random, strength: at)
    assert campaigned(instance, starts) < optimum - 0.01


def test_a_search_that_is_stuck_begins_again_from_another_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "shake", lambda instance, at, random, strength: at)
    instance, start = stuck()
    first, optimum = instance.matrix(start), best(instance)
    packings = campaigns.begin(instance)[1]
    assert campaigned(instance, [first]) < optimum - 0.01
    assert campaigned(instance, [first, *packings]) == pytest.approx(optimum)
