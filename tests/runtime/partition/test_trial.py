"""A trial keeps the model that is the quicker one as a rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ensemble_runtime.errors import EnsembleError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.model import Array
from ensemble_runtime.partition import trial


class Clock:
    """Time that only models take."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Made:
    """A model whose batches take so many seconds, one round after the other; the first batch is no part of them."""

    def __init__(self, clock: Clock, rounds: Sequence[float]) -> None:
        self._clock = clock
        self._rounds = [rounds[0], *rounds]

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        self._clock.now += self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        return [inputs[0]]


def test_a_lucky_round_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(trial.time, "perf_counter", clock)
    lucky = Made(clock, [1.0, 4.0, 4.0, 4.0, 1.0, 4.0, 4.0, 4.0, 4.0])
    steady = Made(clock, [3.0, 3.0, 3.0, 9.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    assert trial.on_trial([lucky, steady], [np.zeros((1, 1), np.float32)]) == [4.0, 3.0]


class Failing:
    def __init__(self, message: str) -> None:
        self._message = message

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        raise RuntimeError(self._message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Failed to allocate memory for requested buffer of size 64", OutOfMemoryError),
        ("no such operator", ModelInvalidError),
    ],
)
def test_lack_of_memory_in_a_trial_is_told_as_such(message: str, told: type[EnsembleError]) -> None:
    with pytest.raises(told, match=message):
        trial.on_trial([Failing(message)], [np.zeros((1, 1), np.float32)])
