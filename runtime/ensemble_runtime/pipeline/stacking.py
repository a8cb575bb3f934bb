"""Stacking: a model of its own reads all members' outputs and gives the answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import Device, DeviceKind, Member, RuntimeConfig, TensorSpec
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.checks import bad_rows, check_outputs, warm_up
from ensemble_runtime.pipeline.folds import Rows
from ensemble_runtime.pipeline.rules import stack_features

Array = NDArray[Any]
STACKING = "/stacking"
"""Stands for the stacking model among the members' files; no member can have this name."""
_NAME = "stacking"


class Stack:
    """A fold that runs the stacking model when a request is complete; it can do without no member.

    The model has one input, the members' values side by side along the last axis, and the ensemble's output.
    """

    streaming = False

    def __init__(self, config: RuntimeConfig, members: int, path: Path) -> None:
        from ensemble_runtime.members.loading import load  # here, so that other rules need no model library

        model = config.combination.model
        if model is None:
            raise AssertionError("the configuration requires a model for Stacking")
        (output,) = config.outputs
        shape = (*output.shape[:-1], members * output.shape[-1]) if output.shape else (members,)
        features = TensorSpec(name="members", datatype=output.datatype, shape=shape, max_length=output.max_length)
        device = Device(
            name="combiner", kind=DeviceKind.CPU, type="cpu", memory_bytes=1, cores=tuple(os.sched_getaffinity(0))[:1]
        )
        self._predictions = config.combination.predictions
        self._outputs = config.outputs
        self._model = load(Member(name=_NAME, model=model), path, (features,), config.outputs, device)
        warm_up(_NAME, self._model, (features,), config.outputs, 1)

    def fold(self, acc: Array, rows: Rows, first: bool | NDArray[np.bool_], values: Array, member: int) -> None:
        """Nothing: the values wait in the members' own areas."""

    def finish(
        self, acc: Array, rows: Rows, arrived: NDArray[np.bool_] | None = None, members: Array | None = None
    ) -> None:
        """Run the model on the members' values, (M, k, *shape)."""
        if members is None or arrived is not None:
            raise ValueError("stacking needs the values of every member")
        answers = self._model.predict([stack_features(members, self._predictions)])
        check_outputs(_NAME, answers, self._outputs, members.shape[1])
        if bad_rows(answers) is not None:
            raise ModelInvalidError(f"member '{_NAME}': returned NaN or infinity")
        acc[rows] = answers[0]
