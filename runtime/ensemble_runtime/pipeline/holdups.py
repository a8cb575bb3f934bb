"""Whether anybody else still holds up what a cell has reported: if so, the combiner need not wake for it.

On cores that compute, a process that wakes in the middle of a batch costs twice: its own caches are cold, and those of
the batch are afterwards. The combiner folds whatever waits for it when a request may be complete.
"""

from __future__ import annotations

from ensemble_runtime.pipeline.arena import HURRIED, Arena, Ring
from ensemble_runtime.pipeline.intake import AGAIN, COUNT, RING, START
from ensemble_runtime.pipeline.wiring import Wiring, ring

_HALF = 2**31
_HEAVY = 2**17
"""Bytes of answers that are worth folding while others still compute."""

_Hand = tuple[memoryview, memoryview]
"""A cell's journal and the words of the entries in it."""


class HoldUps:
    """What members other than a cell's own have not reported yet, seen without a lock."""

    def __init__(self, arena: Arena, wiring: Wiring, cell: int) -> None:
        config = arena.config
        own = config.member_of(cell)
        self._row_bytes = sum(arena.geometry.output_strides)
        self._sequence = wiring.sequence
        self._generation, self._flags = arena.generation.data, arena.flags.data
        self._journal = arena.journals[cell]
        hands = [(journal.words, journal.entries.cast("I")) for journal in arena.journals]
        self._others = [
            (arena.queues[m], [hands[c] for c in config.cells_of(member.name)])
            for m, member in enumerate(config.members)
            # A shard is asked for some of its members only.
            if m != own and not member.shadow and config.shard is None
        ]

    def all_of(self, words: list[int]) -> bool:
        """Whether another member has still to report on each request of a batch that was reported a moment ago.

        Args:
            words: Those of the batch's entries, four each.
        """
        queue, slots, flags = self._journal.words[RING], words[::4], self._flags
        if queue == AGAIN or self._row_bytes * sum(words[2::4]) > _HEAVY or any(flags[s] & HURRIED for s in slots):
            return False
        # Of two cells that report at once the later one to write here sees that the other has.
        ring(self._sequence)
        generation = self._generation
        first = generation[slots[0]]
        last = _since(first, generation[slots[-1]])
        spans: list[tuple[int, int]] = []
        for rings, hands in self._others:
            found = self._spans(rings[queue], queue, hands, first)
            if any(begin <= 0 and last <= end for begin, end in found):
                return True
            spans += found
        sent = [_since(first, generation[slot]) for slot in slots]
        return all(any(begin <= request <= end for begin, end in spans) for request in sent)

    def _spans(self, waiting: Ring, queue: int, hands: list[_Hand], first: int) -> list[tuple[int, int]]:
        """First and last request of those that wait for a member in a queue, and of those in the hand of each cell.

        They are generations, counted from `first`.
        """
        generation, spans = self._generation, []
        if len(waiting):
            spans.append((_since(first, generation[waiting.first_slot()]), _HALF))
        for words, entries in hands:
            start, count = words[START], words[COUNT]
            if count and words[RING] == queue:
                begin, end = generation[entries[0]], generation[entries[4 * count - 4]]
                if words[COUNT] == count and words[START] == start:  # it has not put down one and taken another
                    spans.append((_since(first, begin), _since(first, end)))
        return spans


def _since(first: int, generation: int) -> int:
    """How much later than the first a generation is; they go around."""
    return (generation - first + _HALF) % (2 * _HALF) - _HALF
