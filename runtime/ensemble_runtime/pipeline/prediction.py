"""A prediction process: takes what waits for its cells, runs the models, writes the rows, reports.

It sleeps only when nothing waits for any of its cells, so batches form by themselves while it is busy.
"""

from __future__ import annotations

import contextlib
import logging
import select
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import DeviceKind
from ensemble_runtime.devices.binding import bind, leave_cores, take_cores
from ensemble_runtime.devices.simulated import SimulatedClock
from ensemble_runtime.errors import EnsembleError, ModelInvalidError
from ensemble_runtime.members.checks import bad_rows, check_outputs, first_line, warm_up
from ensemble_runtime.members.model import Array, Model
from ensemble_runtime.members.rows import Passage, Rows
from ensemble_runtime.members.simulated_model import SimulatedModel
from ensemble_runtime.members.storage import FetchedModel, to_parse
from ensemble_runtime.pipeline.arena import (
    ARRIVED,
    CANCELLED,
    FAILED,
    LOADING,
    MISSHAPEN,
    NOT_FINITE,
    RAISED,
    READY,
    SKIPPED,
    WARMING,
    Arena,
)
from ensemble_runtime.pipeline.holdups import HoldUps
from ensemble_runtime.pipeline.intake import Entries, Intake, MemberLock
from ensemble_runtime.pipeline.turns import Turn, shared
from ensemble_runtime.pipeline.wiring import Wiring, linger, ring, sleep_until_rung

log = logging.getLogger(__name__)

_BRIEF = 0.001
"""Seconds; a process whose last batch took less lingers before it sleeps."""

_NO_TURN = contextlib.nullcontext()


def predict_until_killed(arena: Arena, wiring: Wiring, process: int, models: Mapping[str, FetchedModel]) -> int:
    """Run one prediction process; returns an exit code only if it cannot serve.

    Args:
        arena: The ensemble's arena.
        wiring: The doorbells.
        process: Which of the geometry's processes this is.
        models: Model file of each member; simulated devices need none.
    """
    config = arena.config
    cells = arena.geometry.processes[process]
    device = next(d for d in config.devices if d.name == config.cells[cells[0]].device)
    try:
        arena.observed[process].set(bind(device))
        workers = [_Worker(arena, cell, wiring, models) for cell in cells]
    except EnsembleError as error:
        for cell in cells:
            arena.state[cell] = FAILED
            arena.errors[cell].set(str(error))
        return error.exit_code
    for worker in workers:
        worker.announce()
    _serve(arena, process, wiring.workers[process], workers)
    return 0


def _serve(arena: Arena, process: int, doorbell: int, workers: list[_Worker]) -> None:
    def waiting() -> bool:
        return any(worker.waiting() for worker in workers)

    lingering = False
    while True:
        # The member that is furthest behind goes first; see `turns`.
        worker = workers[0] if len(workers) == 1 else max(workers, key=_Worker.waiting_rows)
        if worker.waiting():
            worker.work()
            lingering = worker.brief
            continue
        arena.idle[process] = 1
        if lingering:
            linger(waiting)
            lingering = False
        # Entries pushed before the flag was seen: the gateway rings a process in any case, so nothing can be missed.
        if not waiting():
            for worker in workers:
                worker.pass_on()
            sleep_until_rung(doorbell)


class _Worker:
    """One cell at work."""

    def __init__(self, arena: Arena, cell: int, wiring: Wiring, models: Mapping[str, FetchedModel]) -> None:
        config = arena.config
        self._arena = arena
        self._cell = cell
        self._batch_size = config.cells[cell].batch_size
        self._intake = Intake(arena, cell)
        self._member = self._intake.member
        self._name = config.members[self._member].name
        self._combiner = wiring.combiner
        self._hold_ups = HoldUps(arena, wiring, cell)
        self._process = arena.geometry.process_of(cell)
        self._doorbell = wiring.workers[self._process]
        self._delay = config.serving.batch_delay_ms / 1000
        self._counters = arena.counters[cell].data  # a word at a time; see `Arena`
        self._flags = arena.flags.data
        self._inputs = config.inputs
        self._outputs = config.outputs
        self._fixed = all(spec.fixed for spec in (*config.inputs, *config.outputs))
        device = next(i for i, d in enumerate(config.devices) if d.name == config.cells[cell].device)
        # A GPU overlaps the batches of several processes; cores would only share their caches and slow both down.
        kind = config.devices[device].kind
        takes_turns = kind is not DeviceKind.GPU and shared(arena, cell)
        self._turn = Turn(arena, wiring, device, cell) if takes_turns else None
        self._may_interrupt = kind is DeviceKind.CPU
        self.brief = False
        """Whether the last batch was a short one."""
        self._model = self._load(device, models)
        self._passage = self._between_areas() if self._fixed else None

    def announce(self) -> None:
        """Say that this cell is ready to take work."""
        arena, cell = self._arena, self._cell
        arena.errors[cell].set("")
        with MemberLock(arena, self._member, cell):  # the supervisor looks after the queues of members without a worker
            arena.state[cell] = READY
        log.info("cell ready", extra={"member": self._name, "device": self._arena.config.cells[cell].device})

    def _load(self, index: int, models: Mapping[str, FetchedModel]) -> Model:
        config, device = self._arena.config, self._arena.config.devices[index]
        self._arena.state[self._cell] = LOADING
        if device.kind is DeviceKind.SIMULATED:
            clock = SimulatedClock(device, self._name)
            return SimulatedModel(clock, config.outputs, self._member)
        # Imported here, so that simulated devices need no model library.
        member, second = config.members[self._member], config.second_device(self._cell)
        path = to_parse(models[self._name])
        model: Model
        if second is None:
            from ensemble_runtime.members.loading import load

            model = load(member, path, config.inputs, config.outputs, device)
        else:
            from ensemble_runtime.partition.model import PartitionedModel, load_partitioned

            left = leave_cores(device, second)
            devices = (device, second)
            booked = config.cells[self._cell].scarce_bytes
            model = load_partitioned(member, path, config.inputs, config.outputs, devices, self._batch_size, booked)
            if not isinstance(model, PartitionedModel):  # the whole one may serve on those cores
                take_cores(left)
        self._arena.state[self._cell] = WARMING
        warm_up(self._name, model, config.inputs, config.outputs, self._batch_size)
        return model

    def _between_areas(self) -> Passage:
        arena, outputs = self._arena, self._outputs
        inputs = [arena.input_rows(i) for i in range(len(self._inputs))]
        answers = [arena.member_rows(self._member, o) for o in range(len(outputs))]
        return Passage(self._name, self._model, inputs, answers, outputs)

    def waiting(self) -> int:
        """Entries that wait for this cell's member."""
        return self._intake.waiting()

    def pass_on(self) -> None:
        """Leave the device to others, before the process sleeps."""
        if self._turn is not None:
            self._turn.pass_on()

    def waiting_rows(self) -> int:
        """Rows that wait for this cell's member."""
        return self._intake.waiting_rows()

    def work(self) -> None:
        """Take a batch, unless the member's other cells were faster, and see it through."""
        if self._delay:
            self._await_more()
        # A device that runs one batch at a time is waited for empty-handed: the batch grows until it is free. One brief
        # request alone on cores is computed in the time that it would take to arrange for a turn.
        alone = self.brief and self._may_interrupt and self._intake.waiting() == 1
        with self._turn if self._turn and not alone else _NO_TURN:
            if count := self._intake.take():
                self._see_through(count)

    def _see_through(self, count: int) -> None:
        counters = self._counters
        self._arena.batch_started[self._cell] = started = time.monotonic_ns()
        words = self._intake.words(count)
        entries = self._compute_all(count, words)
        self._arena.batch_started[self._cell] = 0
        counters[0] += 1
        counters[1] += sum(words[2::4])
        spent = time.monotonic_ns() - started
        counters[2] += spent
        self.brief = spent < _BRIEF * 1e9
        if entries is not None:
            self._intake.report(entries)
            ring(self._combiner)
        else:
            self._intake.report_arrived(count)
            if self.brief or not self._hold_ups.all_of(words):
                ring(self._combiner)
        self._arena.idle[self._process] = 1

    def _compute_all(self, count: int, words: list[int]) -> Entries | None:
        """Compute what is in hand; returns the entries with a code each, or None if all their rows are there."""
        if self._passage is None or self._any_cancelled(words[::4]):
            return self._compute_apart(self._arrived(count))
        try:
            bad = self._passage.compute(rows_of_words(words))
        except Exception as error:  # a model may raise anything; the process has to go on
            entries = self._arrived(count)
            self._blame(entries, entries, error)
            return entries
        if bad is None:
            return None
        entries = self._arrived(count)
        entries = entries[entries[:, 1].argsort()]  # as they were computed
        self._mark_bad(entries, entries, bad)
        return entries

    def _arrived(self, count: int) -> Entries:
        entries = self._intake.entries(count)
        entries[:, 3] = ARRIVED
        return entries

    def _any_cancelled(self, slots: list[int]) -> bool:
        flags = self._flags
        return any(flags[slot] & CANCELLED for slot in slots)

    def _await_more(self) -> None:
        """Give a fuller batch the time that the manifest grants."""
        until = time.monotonic() + self._delay
        while self._intake.waiting_rows() < self._batch_size and (rest := until - time.monotonic()) > 0:
            if select.select([self._doorbell], [], [], rest)[0]:
                sleep_until_rung(self._doorbell)

    def _compute_apart(self, entries: Entries) -> Entries:
        """Compute entries in as many batches as their shapes ask for, without those that nobody waits for any more."""
        cancelled = self._arena.flags[entries[:, 0]] & CANCELLED
        entries[cancelled != 0, 3] = SKIPPED
        for group in alike(self._arena, entries[cancelled == 0], fixed=self._fixed):
            self._attempt(entries, group)
        return entries

    def _attempt(self, entries: Entries, batch: Entries) -> None:
        """Compute a batch; the last column of its entries becomes the code of each."""
        # Each attempt has the member's time for a batch: many that fail one by one are no hang.
        self._arena.batch_started[self._cell] = time.monotonic_ns()
        try:
            bad = self._of_any_shape(entries, batch) if self._passage is None else self._passage.compute(rows_of(batch))
        except Exception as error:  # a model may raise anything; the process has to go on
            self._blame(entries, batch, error)
        else:
            self._mark_bad(entries, batch, bad)

    def _blame(self, entries: Entries, batch: Entries, error: Exception) -> None:
        """A model failed on a batch: try each request alone, so that it fails only those it must."""
        if len(batch) > 1:
            for i in range(len(batch)):
                self._attempt(entries, batch[i : i + 1])
            return
        misshapen = isinstance(error, ModelInvalidError)
        message = str(error) if misshapen else f"member '{self._name}': {first_line(error)}"
        self._mark(entries, batch, MISSHAPEN if misshapen else RAISED)
        self._arena.errors[self._cell].set(message)
        log.warning("prediction failed", extra={"member": self._name, "error": message})

    def _mark_bad(self, entries: Entries, batch: Entries, bad: NDArray[np.bool_] | None) -> None:
        if bad is not None:
            ends = batch[:, 2].cumsum()
            hit = np.logical_or.reduceat(bad, (ends - batch[:, 2]).astype(np.intp))
            self._arena.errors[self._cell].set(f"member '{self._name}': returned NaN or infinity")
            self._mark(entries, batch[hit], NOT_FINITE)

    def _mark(self, entries: Entries, batch: Entries, code: int) -> None:
        self._counters[3] += len(batch)
        # First rows are unique among the entries in hand.
        entries[np.isin(entries[:, 1], batch[:, 1]), 3] = code

    def _of_any_shape(self, entries: Entries, batch: Entries) -> NDArray[np.bool_] | None:
        """What a passage does, for rows whose shapes vary from request to request."""
        outputs = self._model.predict(self._gather(batch))
        check_outputs(self._name, outputs, self._outputs, int(batch[:, 2].sum()))
        self._scatter(entries, batch, outputs)
        return bad_rows(outputs)

    def _gather(self, batch: Entries) -> list[Array]:
        """The batch's input rows; those of a single entry are a view of the arena, not a copy."""
        arena, gathered = self._arena, []
        for i, spec in enumerate(self._inputs):
            shape = tuple(arena.input_shapes[batch[0, 0], i, : len(spec.shape)].tolist())
            parts = [
                packed(arena.inputs[i], arena.geometry.input_strides[i], spec.datatype.numpy, shape, base, first, count)
                for base, first, count in self._spans(batch)
            ]
            gathered.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return gathered

    def _scatter(self, entries: Entries, batch: Entries, outputs: list[Array]) -> None:
        """Write rows of variable shape, and the shape, which the combiner compares between members."""
        arena = self._arena
        for o, (spec, values) in enumerate(zip(self._outputs, outputs, strict=True)):
            area, stride = arena.member_outputs[self._member][o], arena.geometry.output_strides[o]
            start = 0
            for i, (base, first, count) in enumerate(self._spans(batch)):
                shape = arena.output_shapes[batch[i, 0], self._member, o, : len(spec.shape)]
                if shape.any() and tuple(shape.tolist()) != values.shape[1:]:
                    # Another segment of the request came out in another shape; together they are no tensor.
                    self._arena.errors[self._cell].set(f"member '{self._name}': rows of one request differ in shape")
                    self._mark(entries, batch[i : i + 1], MISSHAPEN)
                else:
                    shape[...] = values.shape[1:]
                    rows = packed(area, stride, spec.datatype.numpy, values.shape[1:], base, first, count)
                    rows[...] = values[start : start + count]
                start += count

    def _spans(self, batch: Entries) -> list[tuple[int, int, int]]:
        """(first row of the request, first row of the entry, rows) of each entry."""
        bases = self._arena.base[batch[:, 0]].tolist()
        return list(zip(bases, batch[:, 1].tolist(), batch[:, 2].tolist(), strict=True))


def alike(arena: Arena, entries: Entries, *, fixed: bool) -> Iterator[Entries]:
    """Entries whose inputs have the same shapes: only those fit into one batch; `fixed`: no shape is variable."""
    if fixed:
        if len(entries):
            yield entries
        return
    groups: dict[bytes, list[int]] = {}
    for i, slot in enumerate(entries[:, 0].tolist()):
        groups.setdefault(arena.input_shapes[slot].tobytes(), []).append(i)
    for places in groups.values():
        yield entries[places]


def rows_of(batch: Entries) -> slice | NDArray[np.integer[Any]]:
    """The arena's rows that entries stand for, in their order: a slice where they are one run."""
    first, counts = batch[:, 1], batch[:, 2]
    if len(batch) == 1:
        begin = int(first[0])
        return slice(begin, begin + int(counts[0]))
    ends = first + counts
    if (ends[:-1] == first[1:]).all():
        return slice(int(first[0]), int(ends[-1]))
    if counts.max() == 1:
        return first.astype(np.intp)
    offsets = np.repeat(ends.astype(np.intp) - counts.cumsum(dtype=np.intp), counts)
    rows: NDArray[np.intp] = np.arange(len(offsets), dtype=np.intp) + offsets
    return rows


def rows_of_words(words: list[int]) -> Rows:
    """The arena's rows that entries stand for, given their words, in ascending order: a slice where they are one run.

    With numpy only where entries of many rows are scattered.
    """
    spans = sorted(zip(words[1::4], words[2::4], strict=True))
    begin = end = spans[0][0]
    for first, count in spans:
        if first != end:
            break
        end += count
    else:
        return slice(begin, end)
    if sum(words[2::4]) == len(spans):
        return [first for first, _ in spans]
    return rows_of(np.array([(0, first, count, 0) for first, count in spans], np.uint32))


def packed(
    area: memoryview, stride: int, dtype: str, shape: tuple[int, ...], base: int, first: int, count: int
) -> Array:
    """Rows `first` to `first + count` of a request at row `base` whose rows of this shape are packed, as a view."""
    elements = int(np.prod(shape))
    size = elements * np.dtype(dtype).itemsize
    offset = base * stride + (first - base) * size
    rows: Array = np.frombuffer(area, dtype, count * elements, offset).reshape(count, *shape)
    return rows
