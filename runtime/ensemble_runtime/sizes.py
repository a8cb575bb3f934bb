"""How much shared memory a configuration takes: known before anything starts, so that a pod can ask for it.

Beside the configuration the only module of the runtime that the control plane reads.
"""

from __future__ import annotations

from ensemble_runtime.config import MAX_DIMENSIONS, RuntimeConfig, TensorSpec
from ensemble_runtime.span import folded_by_shards, laid_out

DEFAULT_ARENA_BYTES = 256 * 2**20
"""What the tensors of all rows in the pipeline may take where `serving.queueRows` does not say how many there are."""

GPU_CELL_BYTES = 1536 * 2**20
"""Main memory of a process on a GPU: libraries and CUDA context, which it shares with none."""

_SHARD_BATCHES = 4
"""So many of its largest batches a shard has room for at least: its head hands over whole ones, several at once."""

_ENTRY = 16
_RING = 256
_CELL = 4096
"""Words, messages and the rounding of a cell or a member; what they come to is below."""


def row_stride(spec: TensorSpec) -> int:
    """Bytes from one row to the next: fixed rows are packed, variable ones start at multiples of eight bytes."""
    return spec.row_bytes if spec.fixed else (spec.row_bytes + 7) // 8 * 8


def tensor_bytes(config: RuntimeConfig) -> int:
    """Bytes of one row wherever it stands: inputs, each member's outputs, what shards fold, combined outputs."""
    inputs, outputs = sum(map(row_stride, config.inputs)), sum(map(row_stride, config.outputs))
    return inputs + (len(config.members) + len(folded_by_shards(config)) + 1) * outputs


def queue_rows(config: RuntimeConfig) -> int:
    """Most rows in the pipeline: as configured, or what the default arena holds, from 64 to 8192."""
    if config.serving.queue_rows:
        return config.serving.queue_rows
    batches = _SHARD_BATCHES * max(cell.batch_size for cell in config.cells) if config.shard else 0
    return max(64, batches, min(8192, DEFAULT_ARENA_BYTES // tensor_bytes(config)))


def shared_memory_bound(config: RuntimeConfig) -> int:
    """Bytes that the arena takes at the most. It is laid out elsewhere; a test holds the two together."""
    config = laid_out(config)
    rows, members, cells = queue_rows(config), len(config.members), len(config.cells)
    slots = min(config.serving.queue_requests, rows)
    shapes = 4 * MAX_DIMENSIONS * (len(config.inputs) + members * len(config.outputs))
    table = slots * (32 + members + shapes) + rows * (16 + members)
    # Three queues a member, reports of each cell, controls and completions; the entries are rounded to a power of two.
    rings = (3 * members + cells + 1) * (_RING + 2 * _ENTRY * rows) + 2 * (_RING + 2 * 4 * _ENTRY * slots)
    journals = sum(_ENTRY * cell.batch_size for cell in config.cells)
    return rows * tensor_bytes(config) + table + rings + journals + _CELL * (members + cells + 4)
