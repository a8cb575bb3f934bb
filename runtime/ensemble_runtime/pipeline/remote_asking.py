"""What a remote is asked, and what its answers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.members.model import dtype_of
from ensemble_runtime.pipeline.arena import DISAGREE, INDIVIDUAL, Arena
from ensemble_runtime.pipeline.folds import Peak, WeightedSum
from ensemble_runtime.pipeline.intake import Entries
from ensemble_runtime.pipeline.remote_link import LostError, Reply
from ensemble_runtime.pipeline.remote_rows import RowDesk
from ensemble_runtime.pipeline.remote_wire import Answers, Partial, Wire
from ensemble_runtime.pipeline.rules import make_fold
from ensemble_runtime.span import folded_by_shards

_OK = 200
_WARM_UP_LENGTH = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Rows that go to some members together."""

    members: tuple[int, ...]
    batch: Entries
    alone: tuple[int, ...]
    """Members whose own outputs are wanted; of the others, only what they add up to."""
    partial: Partial | None


class Asking:
    """Puts jobs into words; what was said before is remembered."""

    def __init__(self, arena: Arena, desk: RowDesk) -> None:
        self._arena = arena
        self._desk = desk
        self._names = [member.name for member in arena.config.members]
        self._wire = Wire(arena.config)
        self.shares, self.nothing = _shares(arena.config)
        """Of members that their shard folds, the share in the whole; and what those bring that bring nothing."""
        self._partials: dict[tuple[int, ...], Partial] = {}
        self._questions: dict[tuple[object, ...], bytes] = {}

    def job(self, members: tuple[int, ...], batch: Entries) -> Job:
        """A batch for some members: rows of their own where somebody wants them, else what they add up to."""
        folded = [m for m in members if m in self.shares]
        wanted = (self._arena.flags[batch[:, 0]] & (DISAGREE | INDIVIDUAL)).any()
        alone = members if wanted else tuple(m for m in members if m not in self.shares)
        return Job(members, batch, alone, self._partial(tuple(folded)))

    def _partial(self, members: tuple[int, ...]) -> Partial | None:
        if not members:
            return None
        known = self._partials.get(members)
        if known is None:
            combination = self._arena.config.combination
            shares = {self._names[m]: self.shares[m] for m in members}
            known = Partial(rule=combination.rule, predictions=combination.predictions, shares=shares)
            self._partials[members] = known
        return known

    def question(self, job: Job) -> bytes:
        """The JSON that asks for a job."""
        shapes, rows = self._desk.shapes(job.batch), int(job.batch[:, 2].sum())
        key = (job.members, job.alone, rows, *shapes)
        known = self._questions.get(key)
        if known is None:
            if len(self._questions) >= 1024:
                self._questions.clear()
            known = self._wire.question([self._names[m] for m in job.alone], job.partial, rows, shapes)
            self._questions[key] = known
        return known

    def made_up(self, members: Sequence[int]) -> tuple[bytes, list[memoryview]]:
        """The JSON and the tensors of a made-up row for all of these members."""
        config = self._arena.config
        shapes = [tuple(_WARM_UP_LENGTH if dim == -1 else dim for dim in spec.shape) for spec in config.inputs]
        rows = [
            np.zeros((1, *shape), dtype_of(spec)).data.cast("B")
            for spec, shape in zip(config.inputs, shapes, strict=True)
        ]
        return self._wire.question([self._names[m] for m in members], None, 1, shapes), rows

    def answers(self, job: Job, reply: Reply) -> Answers:
        """What a shard answered to a job; raises as `read` does."""
        return self.read(job.alone, job.partial, int(job.batch[:, 2].sum()), reply)

    def read(self, members: Sequence[int], partial: Partial | None, rows: int, reply: Reply) -> Answers:
        """What a shard answered.

        Raises:
            LostError: a refusal.
            UnreadableError: no answer to this question.
        """
        if reply.status != _OK:
            raise LostError(_refusal(reply))
        return self._wire.answers([self._names[m] for m in members], partial, rows, reply.json, reply.tensors)


def _shares(config: RuntimeConfig) -> tuple[dict[int, float], float]:
    """Of the members that their shard folds, the share in the whole; and what those bring that bring nothing."""
    combined = [m for m, member in enumerate(config.members) if not member.shadow]
    folded = folded_by_shards(config)
    if not folded:
        return {}, 0.0
    weights = [config.members[m].weight for m in combined]
    fold = make_fold(config.combination, weights, config.outputs[0].datatype.numpy)
    if isinstance(fold, WeightedSum):
        return {m: fold.shares[combined.index(m)] for m in folded}, fold.nothing
    return dict.fromkeys(folded, 1.0), Peak.nothing


def _refusal(reply: Reply) -> str:
    """What a shard said in place of an answer."""
    try:
        said = str(orjson.loads(reply.json)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = "no reason given"
    return f"answered {reply.status} ({said[:300]})"
