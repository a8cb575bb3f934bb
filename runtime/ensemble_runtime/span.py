"""An ensemble that spans nodes, as each of its runtimes lays it out: pure, for the arena and for those who size it.

The head has a cell for each connection to a remote and member: what is on its way there is some cell's work in hand, so
that journals, recovery and health need to know nothing of remotes. A shard leaves the combining to the head.
"""

from __future__ import annotations

from ensemble_runtime.config import Cell, Combination, Datatype, Predictions, Rule, RuntimeConfig

SUMS = frozenset((Rule.MEAN, Rule.WEIGHTED_MEAN, Rule.SOFT_VOTE, Rule.HARD_VOTE, Rule.GEOMETRIC_MEAN, Rule.MAXIMUM))
"""Rules whose answer can be worked out from what each shard has worked out of its own members."""


def laid_out(config: RuntimeConfig) -> RuntimeConfig:
    """The configuration that the pipeline runs; the same one where nothing spans nodes."""
    if config.shard is not None:
        return _shard(config)
    return _head(config) if config.remotes else config


def folded_by_shards(config: RuntimeConfig) -> frozenset[int]:
    """Indices of the members whose shard may fold them, so that not each member's rows travel back but one sum.

    Those that are combined and have cells on one remote alone, together with another, where the rule allows it: order
    statistics and stacking need each member's rows, and so do sums in types that would lose digits.
    """
    combination = config.combination
    labels = combination.rule is Rule.HARD_VOTE and combination.predictions is Predictions.VALUES
    exact = all(spec.fixed and spec.datatype in (Datatype.FP32, Datatype.FP64) for spec in config.outputs)
    if not config.remotes or combination.rule not in SUMS or labels or not exact:
        return frozenset()
    found: set[int] = set()
    for remote in config.remotes:
        only_there = [
            index
            for index, member in enumerate(config.members)
            if not member.shadow and {config.cells[c].device for c in config.cells_of(member.name)} == {remote.name}
        ]
        if len(only_there) > 1:
            found.update(only_there)
    return frozenset(found)


def _head(config: RuntimeConfig) -> RuntimeConfig:
    local = {device.name for device in config.devices}
    cells = [cell for cell in config.cells if cell.device in local]
    for remote in config.remotes:
        ours = [cell for cell in config.cells if cell.device == remote.name]
        # One size, so that members which always go there go together; the shard cuts it up for its own cells.
        rows = max((cell.batch_size for cell in ours), default=1)
        lane = [Cell(device=remote.name, member=cell.member, batch_size=rows) for cell in ours]
        cells += lane * remote.connections
    return config.model_copy(update={"cells": tuple(cells)})


def _shard(config: RuntimeConfig) -> RuntimeConfig:
    """Its head waits for every member, shadow or not; the head combines, and keeps the quorum."""
    return config.model_copy(
        update={
            "members": tuple(member.model_copy(update={"shadow": False}) for member in config.members),
            "combination": Combination(rule=Rule.MEAN, predictions=Predictions.VALUES),
            "serving": config.serving.model_copy(update={"quorum": None}),
        }
    )
