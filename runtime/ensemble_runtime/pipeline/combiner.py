"""What has arrived from which member, and which requests are complete: whole batches at once where nothing is wrong.

All that it knows can be found again in the arena: `status` says which rows have arrived from which member, and the
members' rows stay where they are until the request is over. A new combiner after a crash refolds from there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.members.storage import FetchedModel
from ensemble_runtime.pipeline.arena import ACTIVE, ARRIVED, DISAGREE, Arena
from ensemble_runtime.pipeline.folding import Folding
from ensemble_runtime.pipeline.folds import Rows
from ensemble_runtime.pipeline.intake import Entries
from ensemble_runtime.pipeline.judging import DONE, Judge
from ensemble_runtime.pipeline.prediction import rows_of

_FEW = 16
"""So many reports are looked at one by one sooner than numpy looks at them together."""
_MANY_ROWS = 16
"""Reports of so many rows each are taken one by one as well: slices of rows need no index arrays."""


class Combiner:
    """Takes in what the members report, and tells the gateway what is done."""

    def __init__(self, arena: Arena, models: Mapping[str, FetchedModel]) -> None:
        self._arena = arena
        self._config = config = arena.config
        self._combined = [i for i, member in enumerate(config.members) if not member.shadow]
        self._place = {member: place for place, member in enumerate(self._combined)}
        names = [member.name for member in config.members]
        self._members_of_rings = [names.index(cell.member) for cell in config.cells]
        remotes = {remote.name for remote in config.remotes}
        self._naming = {i for i, cell in enumerate(config.cells) if cell.device in remotes} | {len(config.cells)}
        """Rings whose reports name their members."""
        self._folding = Folding(arena, self._combined, models)
        self._fixed = self._folding.fixed
        self._streaming = self._folding.streaming
        self._fold = self._folding.fold
        # Members that no one waits for, and the supervisor's reports of failures, have no place in a combination.
        self._places_of_rings = [self._place.get(member) for member in self._members_of_rings] + [None]
        self._status = arena.status.reshape(-1).data
        self._remaining = arena.remaining.data
        self._row_count = arena.row_count.data
        self._every_slot = np.arange(arena.geometry.slots, dtype=np.uint32)
        self._judge = Judge(arena, self._folding, self._combined)

    def turn(self) -> bool:
        """Take in all reports and controls; returns whether the gateway has something to read."""
        for index, reports in enumerate(self._arena.reports):
            if not (waiting := len(reports)):
                continue
            entries = reports.peek(waiting)
            if index in self._naming:
                self._take_named(entries)
            elif self._streaming and (waiting <= _FEW or entries[:, 2].sum() >= _MANY_ROWS * waiting):
                self._take_few(index, entries.tolist())
            else:
                self._take(index, entries)
            reports.head += waiting
        controls = self._arena.controls
        if waiting := len(controls):
            for slot, generation, operation, _ in controls.peek(waiting).tolist():
                self._judge.obey(slot, generation, operation)
            controls.head += waiting
        return self._publish()

    def waiting(self) -> bool:
        """Whether there are reports or controls to take in."""
        return any(map(len, self._arena.reports)) or len(self._arena.controls) > 0

    def recover(self) -> None:
        """Take over from a combiner that died: note what was reported, then fold every open request anew."""
        arena = self._arena
        for index, reports in enumerate(arena.reports):
            if waiting := len(reports):
                for entry in reports.peek(waiting):
                    arena.status[self._member(index, entry), rows_of(entry[None])] = _code(entry)
                reports.head += waiting
        for slot in np.flatnonzero(arena.flags & ACTIVE).tolist():
            self._judge.adopt(slot)

    def _publish(self) -> bool:
        if not self._judge.completions:
            return False
        self._arena.completions.push(b"".join(self._judge.completions))
        self._judge.completions.clear()
        return True

    # -- reports ------------------------------------------------------------------------------------------------------

    def _take(self, index: int, entries: Entries) -> None:
        """One ring's reports, all of one member."""
        self._take_of(self._members_of_rings[index], entries)

    def _take_named(self, entries: Entries) -> None:
        """Reports that name their members: the supervisor's, and those of a remote, whose members arrive together."""
        members = entries[:, 3] >> 16
        parts = [(m, entries[members == m]) for m in np.unique(members).tolist()]
        for member, part in parts:
            part[:, 3] &= 0xFFFF
            # Before any request is judged: one member may bring the sum of all.
            self._arena.status[member, rows_of(part)] = np.repeat(part[:, 3], part[:, 2])
        for member, part in parts:
            self._take_of(member, part)

    def _take_of(self, member: int, entries: Entries) -> None:
        if not self._regular(entries):
            for entry in entries:
                self._take_one(member, entry)
        elif not self._fixed:
            self._take_all(member, entries)
        else:
            single = self._arena.row_count.take(entries[:, 0]) == 1
            if np.logical_and.reduce(single):
                self._take_single_rows(member, entries)
            else:
                if np.logical_or.reduce(single):
                    self._take_single_rows(member, entries[single])
                self._take_all(member, entries[~single])

    def _regular(self, entries: Entries) -> bool:
        """Whether all rows arrived, of requests with which nothing is wrong."""
        if (entries[:, 3] != ARRIVED).any():
            return False
        slots = entries[:, 0]
        if self._judge.closures and self._judge.closed[slots].any():
            return False
        return not self._judge.irregular or self._judge.irregular.isdisjoint(slots.tolist())

    def _take_few(self, index: int, entries: list[list[int]]) -> None:
        """A few reports, or some of many rows: with little of numpy if nothing is wrong."""
        row_count, remaining, status = self._row_count, self._remaining, self._status
        plain = len(entries) > 1 and not self._judge.closures and not self._judge.irregular
        place = self._places_of_rings[index] if plain else None
        if place is None or any(code != ARRIVED or row_count[slot] != 1 for slot, _, _, code in entries):
            for entry in entries:
                self._take_single(index, *entry)
            return
        member, everybody = self._combined[place], len(self._combined)
        offset = member * self._arena.geometry.rows
        fresh, last = [], []
        for slot, row, _, _ in entries:
            left = remaining[slot]
            remaining[slot] = left - 1
            status[offset + row] = ARRIVED
            fresh.append(left == everybody)
            if left == 1:
                last.append((slot, row))
        rows = np.array([row for _, row, _, _ in entries], np.intp)
        self._fold(rows, fresh[0] if len(set(fresh)) == 1 else np.array(fresh), member, place)
        if last:
            complete = np.array(last, np.uint32)
            self._complete(complete[:, 0], complete[:, 1])

    def _take_single(self, index: int, slot: int, row: int, count: int, code: int) -> None:
        """One report, of a lone client's request or of many rows: with little of numpy if nothing is wrong."""
        plain = code == ARRIVED and not self._judge.closures and not self._judge.irregular
        place = self._places_of_rings[index] if plain else None
        if place is None:
            self._take(index, np.array([[slot, row, count, code]], np.uint32))
            return
        member = self._combined[place]
        remaining = self._remaining[slot]
        self._remaining[slot] = remaining - count
        rows = slice(row, row + count)
        if self._row_count[slot] == 1:
            self._status[member * self._arena.geometry.rows + row] = ARRIVED
            self._fold(rows, remaining == len(self._combined), member, place)
        else:
            self._arena.status[member, rows] = ARRIVED
            self._fold(rows, self._first(rows), member, place)
            self._judge.folded[rows] += 1
        if remaining == count:
            whole = self._judge.rows(slot)
            self._judge.folded[whole] = 0
            self._complete(self._every_slot[slot : slot + 1], whole)

    def _first(self, rows: Rows) -> bool | NDArray[np.bool_]:
        """Of which rows nothing has been folded yet; a bool where that is so for all or none of them."""
        folded = self._judge.folded[rows]
        if not folded.any():
            return True
        return False if folded.all() else folded == 0

    def _take_single_rows(self, member: int, entries: Entries) -> None:
        """The fast path: requests of one row. Few and cheap calls: for small models this is most of the work."""
        slots, rows = entries[:, 0], entries[:, 1]
        self._arena.status[member][rows] = ARRIVED
        place = self._place.get(member)
        if place is None:
            self._arena.shadowed[slots] -= 1
            return
        remaining = self._arena.remaining.take(slots)
        self._arena.remaining[slots] = remaining - 1
        least, most, everybody = remaining.min(), remaining.max(), len(self._combined)
        # A request of one row has been folded from nobody exactly if everybody remains.
        if self._streaming:
            self._fold(rows, least == everybody or (most == everybody and remaining == everybody), member, place)
        if most == 1:
            self._complete(slots, rows)
        elif least == 1:
            last = remaining == 1
            self._complete(slots[last], rows[last])

    def _take_all(self, member: int, entries: Entries) -> None:
        """Segments of requests of any number of rows."""
        arena = self._arena
        rows = rows_of(entries)
        arena.status[member][rows] = ARRIVED
        slots, counts = entries[:, 0], entries[:, 2].astype(np.int32)
        if len(slots) > 1:
            # Several segments of one request: numpy would take down its counters only once.
            slots, inverse = np.unique(slots, return_inverse=True)
            counts = np.bincount(inverse, counts).astype(np.int32)
        place = self._place.get(member)
        if place is None:
            arena.shadowed[slots] -= counts
            return
        if self._streaming:
            self._fold(rows, self._first(rows), member, place)
            self._judge.folded[rows] += 1
        remaining = arena.remaining[slots] - counts
        arena.remaining[slots] = remaining
        complete = slots[remaining == 0]
        if len(complete):
            spans = np.empty((len(complete), 4), np.uint32)
            spans[:, 1], spans[:, 2] = arena.base[complete], arena.row_count[complete]
            rows = rows_of(spans)
            self._judge.folded[rows] = 0
            self._complete(complete, rows)

    def _complete(self, slots: NDArray[np.uint32], rows: Rows) -> None:
        """Requests of which the rows of every combined member are there."""
        if not self._fixed or not self._folding.finish(rows):
            for slot in slots.tolist():
                self._judge.decide(slot)
            return
        arena = self._arena
        if np.bitwise_or.reduce(flags := arena.flags.take(slots)) & DISAGREE:
            for slot in slots[(flags & DISAGREE) != 0].tolist():
                self._folding.disagree(slot, self._combined)
        records = np.empty((len(slots), 4), np.uint32)
        records[:, 0] = slots
        records[:, 1] = arena.generation.take(slots)
        records[:, 2] = DONE
        records[:, 3] = 1
        if len(self._combined) < len(self._config.members):
            records[:, 3] = settled = arena.shadowed.take(slots) == 0
            self._judge.closed[slots] = ~settled
            self._judge.closures += int(np.count_nonzero(~settled))
        self._judge.completions.append(records.tobytes())

    def _take_one(self, member: int, entry: NDArray[np.uint32]) -> None:
        """The careful path: one report, whatever its code and whatever state its request is in."""
        arena = self._arena
        slot, count = int(entry[0]), int(entry[2])
        arena.status[member, rows_of(entry[None])] = _code(entry)
        (arena.remaining if member in self._place else arena.shadowed)[slot] -= count
        if self._judge.closed[slot]:
            self._judge.settle(slot)
        else:
            self._judge.irregular.add(slot)
            self._judge.decide(slot)

    def _member(self, index: int, entry: NDArray[np.uint32]) -> int:
        """The member that a report is about; some rings name it in the upper half of the code."""
        return int(entry[3]) >> 16 if index in self._naming else self._members_of_rings[index]


def _code(entry: NDArray[np.uint32]) -> int:
    return int(entry[3]) & 0xFFFF
