"""A member on a simulated device: sleeps for the stated time of each batch, and answers what a test can foresee."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ensemble_runtime.config import TensorSpec
from ensemble_runtime.devices.simulated import SimulatedClock
from ensemble_runtime.members.model import Array, dtype_of


def simulated_outputs(inputs: Sequence[Array], outputs: Sequence[TensorSpec], column: int) -> list[Array]:
    """What the simulated member of a column answers.

    Element j of a row's output is ``mean of the row's inputs + column + j / elements``, computed in FP64 and cast to
    the output's datatype. It depends on its own row alone, so that a scatter to the wrong request shows. A variable
    dimension has length 1.
    """
    rows = len(inputs[0])
    means = np.mean([x.reshape(rows, -1).mean(axis=1, dtype=np.float64) for x in inputs], axis=0)
    answers = []
    for spec in outputs:
        shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
        elements = int(np.prod(shape))
        values = means[:, None] + (column + np.arange(elements) / elements)
        answers.append(values.astype(dtype_of(spec)).reshape(rows, *shape))
    return answers


class SimulatedModel:
    """Takes the stated time of each batch by sleeping, so that a device it shares a machine with is not disturbed."""

    def __init__(self, clock: SimulatedClock, outputs: Sequence[TensorSpec], column: int) -> None:
        self._clock = clock
        self._outputs = tuple(outputs)
        self._column = column

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`; the answer's own computation is part of the stated time."""
        end = time.monotonic() + self._clock.seconds(len(inputs[0]))
        answers = simulated_outputs(inputs, self._outputs, self._column)
        if (rest := end - time.monotonic()) > 0:
            time.sleep(rest)
        return answers
