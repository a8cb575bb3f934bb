"""How rows of the arena are combined: batch by batch as they arrive, or all members of a request at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import Rule, RuntimeConfig
from ensemble_runtime.members.storage import FetchedModel, to_parse
from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.disagreement import disagreement
from ensemble_runtime.pipeline.folds import Fold, Peak, Prefolded, Rows, Uncombined, WeightedSum
from ensemble_runtime.pipeline.prediction import packed
from ensemble_runtime.pipeline.rules import make_fold
from ensemble_runtime.pipeline.stacking import STACKING, Stack
from ensemble_runtime.span import folded_by_shards

log = logging.getLogger(__name__)

Array = NDArray[Any]


class Folding:
    """The ensemble's rule, over the arena's rows."""

    def __init__(self, arena: Arena, combined: list[int], models: Mapping[str, FetchedModel]) -> None:
        """Prepare the rule.

        Args:
            arena: The ensemble's arena.
            combined: The members that enter the answer.
            models: Holds the stacking model's file under its reserved name, where the rule asks for one.
        """
        self._arena = arena
        self._config = config = arena.config
        self._combined = combined
        self._folds = _folds(config, combined, models)
        self.fixed = all(spec.fixed for spec in config.outputs)
        """Whether no output has a variable shape."""
        self.streaming = self.fixed and all(fold.streaming for fold in self._folds)
        """Whether members are folded in as they arrive."""
        if self.fixed:
            outputs, members = range(len(config.outputs)), range(len(config.members))
            self._outputs = [arena.output_rows(o) for o in outputs]
            tables = [arena.partial_rows if m in arena.partials else arena.member_rows for m in members]
            self._members = [[table(m, o) for o in outputs] for m, table in enumerate(tables)]

    def fold(self, rows: Rows, first: bool | NDArray[np.bool_], member: int, place: int) -> None:
        """Fold rows of a member, whose place among those that are combined is given, into the outputs."""
        for fold, out, values in zip(self._folds, self._outputs, self._members[member], strict=True):
            batch = values[rows] if isinstance(rows, slice) else values.take(rows, axis=0)
            fold.fold(out, rows, first, batch, place)

    def finish(self, rows: Rows) -> bool:
        """Turn complete rows into answers; False if that failed for any of them."""
        try:
            for o, fold in enumerate(self._folds):
                if self.streaming:
                    fold.finish(self._outputs[o], rows)
                else:
                    _at_once(fold, self._outputs[o], rows, [self._members[m][o][rows] for m in self._combined], None)
        except Exception:  # a stacking model may raise anything; one by one it fails only the requests it must
            log.warning("combination failed for a batch; trying one request at a time")
            return False
        return True

    def combine(self, slot: int, arrived: list[int]) -> None:
        """Combine a request anew from these members' rows, whatever was folded before.

        Raises:
            Exception: whatever a stacking model raises.
        """
        arena = self._arena
        places = [self._combined.index(m) for m in arrived]
        present = np.isin(np.arange(len(self._combined)), places)
        for o, fold in enumerate(self._folds):
            out = self._view(slot, o, arrived[0], arena.outputs[o])
            members = [np.zeros_like(out)] * len(self._combined)
            for m, place in zip(arrived, places, strict=True):
                members[place] = self._view(slot, o, m, arena.partials.get(m, arena.member_outputs[m])[o])
            _at_once(fold, out, slice(0, len(out)), members, None if present.all() else present)

    def disagree(self, slot: int, arrived: list[int]) -> None:
        """Write down how the members that arrived disagree on a request."""
        members = np.stack([self._view(slot, 0, m, self._arena.member_outputs[m][0]) for m in arrived])
        weights = [self._config.members[m].weight for m in arrived]
        signals = disagreement(members, weights, self._config.combination.predictions)
        base = int(self._arena.base[slot])
        self._arena.disagreement[base : base + len(signals)] = signals

    def _view(self, slot: int, output: int, member: int, area: memoryview) -> Array:
        """A request's rows in an output area, in the shape that the member gave them."""
        arena, spec = self._arena, self._config.outputs[output]
        shape = spec.shape if spec.fixed else arena.output_shapes[slot, member, output, : len(spec.shape)].tolist()
        base, count = int(arena.base[slot]), int(arena.row_count[slot])
        stride = arena.geometry.output_strides[output]
        return packed(area, stride, spec.datatype.numpy, tuple(shape), base, base, count)


def _folds(config: RuntimeConfig, combined: list[int], models: Mapping[str, FetchedModel]) -> list[Fold]:
    if config.shard is not None:
        return [Uncombined() for _ in config.outputs]
    if config.combination.rule is Rule.STACKING:
        return [Stack(config, len(combined), to_parse(models[STACKING]))]
    weights = [config.members[m].weight for m in combined]
    folds = [make_fold(config.combination, weights, spec.datatype.numpy) for spec in config.outputs]
    if elsewhere := folded_by_shards(config):
        places = frozenset(combined.index(m) for m in elsewhere)
        return [Prefolded(fold, places) if isinstance(fold, WeightedSum | Peak) else fold for fold in folds]
    return folds


def _at_once(fold: Fold, out: Array, rows: Rows, members: Sequence[Array], present: NDArray[np.bool_] | None) -> None:
    """Combine rows whose members are all there, or as many of them as ever will be."""
    if fold.streaming:
        first = True
        for place, values in enumerate(members):
            if present is None or present[place]:
                fold.fold(out, rows, first, values, place)
                first = False
        fold.finish(out, rows, present)
    else:
        fold.finish(out, rows, present, np.stack(members))
