"""How the shadows' predictions compare with the answers that went out: counted in the gateway, request by request.

A shadow is there to be watched before it is trusted. Whatever it predicts stays in the arena until the request's rows
are given back, and so does the answer.
"""

from __future__ import annotations

import numpy as np

from ensemble_runtime.config import Predictions, RuntimeConfig
from ensemble_runtime.pipeline.arena import ARRIVED, Arena
from ensemble_runtime.pipeline.leases import Array, RowLease, Tensors
from ensemble_runtime.pipeline.port import ShadowStatus


class Shadows:
    """Counts of each shadow; the first output is what is compared."""

    def __init__(self, arena: Arena, tensors: Tensors) -> None:
        self._status = arena.status
        self._tensors = tensors
        config = arena.config
        self._classes = _tell_classes(config)
        # A shard's answers are its members'; the head combines, and has the shadows among its own members.
        shadows = [] if config.shard else [(m, member.name) for m, member in enumerate(config.members) if member.shadow]
        self._members = dict(shadows)
        self._rows = dict.fromkeys(self._members, 0)
        self._sums = dict.fromkeys(self._members, 0.0)

    def __len__(self) -> int:
        return len(self._members)

    def compare(self, lease: RowLease) -> None:
        """Count an answered request, whose rows are still there."""
        for member, name in self._members.items():
            if not (self._status[member, lease.base : lease.base + lease.rows] == ARRIVED).all():
                continue
            answer, own = lease.output(0), self._tensors.member_output(lease, name, 0)
            if answer.shape != own.shape:
                continue
            self._rows[member] += lease.rows
            self._sums[member] += _same_class(answer, own) if self._classes else _apart(answer, own)

    def read(self) -> tuple[ShadowStatus, ...]:
        """The counts so far."""
        return tuple(
            ShadowStatus(
                name,
                self._rows[member],
                agreeing=self._sums[member] if self._classes else None,
                apart=None if self._classes else self._sums[member],
            )
            for member, name in self._members.items()
        )


def _tell_classes(config: RuntimeConfig) -> bool:
    last = config.outputs[0].shape[-1:]
    return config.combination.predictions is not Predictions.VALUES and last not in ((), (1,))


def _same_class(answer: Array, own: Array) -> float:
    """Rows whose likeliest class is the same, or the share of those of a row that has several."""
    same = answer.argmax(axis=-1) == own.argmax(axis=-1)
    return float(same.reshape(len(answer), -1).mean(axis=1).sum())


def _apart(answer: Array, own: Array) -> float:
    """The mean distance of each row's numbers, added up over the rows."""
    distance = np.abs(answer.astype(np.float64) - own.astype(np.float64))
    return float(distance.reshape(len(answer), -1).mean(axis=1).sum())
