"""What a shadow predicts is compared with the answers that went out, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ensemble_runtime.pipeline.arena import ARRIVED, SKIPPED, Arena
from ensemble_runtime.pipeline.leases import RowLease, Tensors
from ensemble_runtime.pipeline.port import ShadowStatus
from ensemble_runtime.pipeline.shadows import Shadows

A, SHADE = range(2)
MEMBERS = ["a", {"name": "shade", "shadow": True}]


class Scene:
    """One combined member and one shadow; requests stand in the arena as they do when they are answered."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._tensors = Tensors(arena)
        self.shadows = Shadows(arena, self._tensors)

    def answer(self, answer: list[Any], shade: list[Any], status: int = ARRIVED) -> None:
        rows = slice(3, 3 + len(answer))
        self.arena.output_rows(0)[rows] = answer
        self.arena.member_rows(SHADE, 0)[rows] = shade
        self.arena.status[SHADE, rows] = status
        self.shadows.compare(RowLease(self._tensors, 0, 3, len(answer), ()))


@pytest.fixture
def play(bench: Any) -> Iterator[Callable[..., Scene]]:
    arenas = []

    def begin(predictions: str, shape: list[int], **changes: Any) -> Scene:
        arena = bench.arena_of(
            bench.make_config(
                **{"members": MEMBERS, "cells": [("s0", "a", 4), ("s1", "shade", 4)]} | changes,
                outputs=[{"name": "y", "datatype": "FP32", "shape": shape}],
                combination={"rule": "Mean", "predictions": predictions},
            )
        )
        arenas.append(arena)
        return Scene(arena.__enter__()[0])

    yield begin
    for arena in arenas:
        arena.__exit__(None, None, None)


def test_rows_of_the_same_class_agree(play: Callable[..., Scene]) -> None:
    scene = play("Probabilities", [3])
    scene.answer([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]], [[0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    scene.answer([[0.0, 0.0, 1.0]], [[0.2, 0.2, 0.6]])
    assert scene.shadows.read() == (ShadowStatus("shade", 3, agreeing=2.0, apart=None),)


def test_of_a_row_of_several_classes_their_share_agrees(play: Callable[..., Scene]) -> None:
    scene = play("Logits", [2, 2])
    scene.answer([[[0.1, 0.9], [0.8, 0.2]]], [[[-3.0, 2.0], [-1.0, 4.0]]])
    assert scene.shadows.read() == (ShadowStatus("shade", 1, agreeing=0.5, apart=None),)


@pytest.mark.parametrize(("predictions", "shape"), [("Values", [2]), ("Probabilities", [1])])
def test_numbers_are_so_far_apart(play: Callable[..., Scene], predictions: str, shape: list[int]) -> None:
    scene = play(predictions, shape)
    scene.answer([[1.0] * shape[0], [5.0] * shape[0]], [[3.0] * shape[0], [4.5] * shape[0]])
    assert scene.shadows.read() == (ShadowStatus("shade", 2, agreeing=None, apart=2.5),)


def test_a_request_that_the_shadow_did_not_see_whole_is_not_counted(play: Callable[..., Scene]) -> None:
    scene = play("Values", [2])
    scene.answer([[1.0, 1.0]], [[9.0, 9.0]], status=SKIPPED)
    assert scene.shadows.read() == (ShadowStatus("shade", 0, agreeing=None, apart=0.0),)


def test_without_shadows_nothing_is_counted(play: Callable[..., Scene]) -> None:
    scene = play("Values", [2], members=["a"], cells=[("s0", "a", 4)])
    assert len(scene.shadows) == 0
    assert scene.shadows.read() == ()
