"""Runs on a GPU: its own memory, ONNX Runtime bound to it, and what crosses, all of it queued and none awaited.

Three streams: one computes, one brings up what the host has made, one takes down what it is to have. A run is queued
behind the copies that it needs, a copy behind the run that it is of; so both cross while other runs compute.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from ensemble_runtime.devices.cuda import Block, Copy, Cuda, CudaError, Event, Pinned, Stream
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.partition.crossings import GPU, Crossings, Visit, crossings
from ensemble_runtime.partition.memory import Memory, Place, Span
from ensemble_runtime.partition.runs import Run
from ensemble_runtime.partition.sessions import call
from ensemble_runtime.partition.unawaited import Unawaited

log = logging.getLogger(__name__)

Sessions = Sequence[tuple[Any, Mapping[str, str]]]
"""Of each run its session, and what that calls the graph's tensors."""


class Gpu:
    """A GPU's streams, and its memory for a program at several shapes, of which only one is computed at a time."""

    def __init__(self) -> None:
        """Take hold of the first GPU that this process sees.

        Raises:
            DeviceUnavailableError: there is none.
            OutOfMemoryError: there is no room for a context.
        """
        self.cuda = Cuda()
        self.computing, self.up, self.down = (Stream(self.cuda) for _ in range(3))
        self.unawaited = Unawaited(self.cuda, self.computing)
        self._room: Block | None = None
        self._batches = 0

    def room(self, size: int) -> Block:
        """So many bytes, undefined, for any shape; the first is best the largest."""
        if self._room is None or size > self._room.size:
            self._room = Block(self.cuda, size)
        return self._room

    def finish(self) -> None:
        """Wait until all of a batch is done that was queued."""
        for stream in (self.up, self.computing, self.down):
            stream.finish()
        self._batches += 1
        if self._batches % _SETTLED == 0:
            self.unawaited.settle()


_SETTLED = 256
"""After so many batches what they have left in ONNX Runtime, some 256 bytes a recurrent run, is given back, at the
price of a run of each session: seldom enough for the 99th percentile not to tell."""


class Uploads:
    """What goes up in a batch, in order."""

    def __init__(self, gpu: Gpu, copies: Sequence[Copy], found: Crossings) -> None:
        """Hold it."""
        self._stream = gpu.up
        needed = {visit.needs for visit in found.visits.values()}
        self._copies = [(x, Event(gpu.cuda) if i in needed else None) for i, x in enumerate(copies, 1)]
        self._begin = found.begin

    def begin(self) -> None:
        """Queue what a batch begins with."""
        self.queue(0, self._begin)

    def queue(self, start: int, stop: int) -> None:
        """Queue some of the copies."""
        for copy, arrived in self._copies[start:stop]:
            self._stream.up(copy)
            if arrived is not None:
                arrived.record(self._stream)

    def arrived(self, count: int) -> Event | None:
        """Behind the first so many copies; None for none."""
        return self._copies[count - 1][1] if count else None


class Computation:
    """A run on a GPU, with what crosses because of it."""

    def __init__(
        self, gpu: Gpu, run: Callable[[], None], visit: Visit, memory: GpuMemory, uploads: Uploads, queued: int
    ) -> None:
        """Hold it.

        Args:
            gpu: Where it computes.
            run: Has it computed there.
            visit: What crosses.
            memory: To which it is bound.
            uploads: Of the batch.
            queued: How many of these the runs before it have queued.
        """
        self._gpu, self._run, self._visit, self._memory = gpu, run, visit, memory
        self._uploads, self._queued, self._needed = uploads, queued, uploads.arrived(visit.needs)
        self._down = memory.copies(visit.down)
        self._computed, self.left = Event(gpu.cuda), Event(gpu.cuda)
        """The latter behind the last copy to the host so far."""

    def queue(self) -> None:
        """Have it computed as soon as what is queued before it has been; waits only for what it reads on the host."""
        gpu, visit = self._gpu, self._visit
        self._uploads.queue(self._queued, visit.before)
        if visit.reads_host:
            gpu.down.finish()
        if self._needed is not None:
            gpu.computing.after(self._needed)
        self._run()
        self._uploads.queue(visit.before, visit.behind)
        if self._down:
            self._computed.record(gpu.computing)
            gpu.down.after(self._computed)
            for copy in self._down:
                gpu.down.down(copy)
        self.left.record(gpu.down)


class GpuMemory:
    """The buffers that runs on a GPU read and write."""

    def __init__(self, host: Memory, found: Crossings, gpu: Gpu) -> None:
        """Allocate; what is in there is undefined.

        Args:
            host: The same buffers in the host's memory.
            found: Which bytes need a place, and which of them never change.
            gpu: With a room for all that does.
        """
        self._host = host
        fixed = {span.buffer for span in found.once}
        shared = [place for place in found.places if place.buffer not in fixed]
        starts = [0, *accumulate(-(-place.size // _ALIGNED) * _ALIGNED for place in shared)]
        self._common = gpu.room(starts[-1])
        self._own = [(place, Block(gpu.cuda, place.size)) for place in found.places if place.buffer in fixed]
        self._at: dict[str, list[tuple[Span, int]]] = {}
        for place, address in (
            *((place, self._common.address + start) for place, start in zip(shared, starts, strict=False)),
            *((place, block.address) for place, block in self._own),
        ):
            self._at.setdefault(place.buffer, []).append((place, address))
        down = (span for visit in found.visits.values() for span in visit.down)
        self._pinned = pinned_pages(gpu.cuda, self.copies((*found.up, *found.once, *down)))

    def bind(self, name: str) -> Place:
        """A tensor for an I/O binding."""
        return self._host.bind(name, self._address(self._host.span(name)))

    def copies(self, spans: Iterable[Span]) -> tuple[Copy, ...]:
        """Parts of this memory with their places in the host's."""
        return tuple(Copy(self._address(s), self._host.address(s), s.size) for s in spans)

    def _address(self, span: Span) -> int:
        here = self._at[span.buffer]
        place, address = next((x for x in here if x[0].start <= span.start and span.stop <= x[0].stop), here[0])
        return address + span.start - place.start


_ALIGNED = 256
"""Bytes; as CUDA aligns what it allocates."""


def pinned_pages(cuda: Cuda, copies: Iterable[Copy]) -> list[Pinned]:
    """The host's pages that something crosses from or to, pinned; fewer or none where the driver refuses.

    All copies of a piece of memory are to be among these: CUDA refuses one of which a part only is pinned.
    """
    found: list[Pinned] = []
    try:
        found.extend(Pinned(cuda, start, stop - start) for start, stop in _pages(copies))
    except (CudaError, OutOfMemoryError) as error:
        log.warning("tensors cross to the GPU and back by way of a buffer, since memory cannot be pinned: %s", error)
    return found


def _pages(copies: Iterable[Copy]) -> Iterator[tuple[int, int]]:
    """Begin and end of whole pages, none of them twice."""
    page, begin, end = mmap.PAGESIZE, 0, 0
    for first, last in sorted((c.here // page * page, -(-(c.here + c.size) // page) * page) for c in copies):
        if first > end:
            if end:
                yield begin, end
            begin = first
        end = max(end, last)
    if end:
        yield begin, end


def on_gpu(
    runs: Sequence[Run],
    sessions: Sessions,
    memory: Memory,
    gpu: Gpu,
    given: Iterable[str],
    taken: Iterable[str],
) -> tuple[Uploads, dict[int, Computation]]:
    """Bind the runs on a GPU, ready to compute, and copy there what never changes.

    Args:
        runs: All of a program's; those of the other device are only looked at.
        sessions: Of each; those on the GPU compute on its stream.
        memory: The host's.
        gpu: Where to.
        given: As of `crossings`.
        taken: As of `crossings`.

    Returns:
        What goes up, and the computations by run.

    Raises:
        ModelInvalidError: ONNX Runtime does not bind them, or does not tell where an input is read.
        OutOfMemoryError: There is no room for them.
        DeviceUnavailableError: The GPU fails.
    """
    try:
        return _bound(runs, sessions, memory, gpu, given, taken)
    except (DeviceUnavailableError, ModelInvalidError):
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise failure(error, f"cannot be bound to a GPU: {first_line(error)}") from error


def _bound(
    runs: Sequence[Run],
    sessions: Sessions,
    memory: Memory,
    gpu: Gpu,
    given: Iterable[str],
    taken: Iterable[str],
) -> tuple[Uploads, dict[int, Computation]]:
    gpu.cuda.enter()
    own = [i for i, run in enumerate(runs) if run.device == GPU]
    found = crossings(runs, memory.span, {i: _on_host(runs[i], *sessions[i]) for i in own}, given, taken)
    there = GpuMemory(memory, found, gpu)
    for copy in there.copies(found.once):
        gpu.up.up(copy)
    gpu.finish()
    uploads, queued = Uploads(gpu, there.copies(found.up), found), found.begin
    computations = {}
    for i, visit in found.visits.items():
        run = _bound_run(runs[i], *sessions[i], memory, there, visit.on_host, gpu)
        computations[i] = Computation(gpu, run, visit, there, uploads, queued)
        queued = visit.behind
    return uploads, computations


def _bound_run(
    run: Run,
    session: Any,
    names: Mapping[str, str],
    host: Memory,
    memory: GpuMemory,
    on_host: Collection[str],
    gpu: Gpu,
) -> Callable[[], None]:
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *(host if name in on_host else memory).bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *memory.bind(name))
    if _all_there(session):
        return gpu.unawaited.run(session, binding, memory)
    return partial(_awaited, call(session, binding), gpu.computing)


def _awaited(run: Callable[[], None], stream: Stream) -> None:
    run()
    stream.finish()  # ONNX Runtime does not, of a stream that is not its own


def _all_there(session: Any) -> bool:
    """Whether all of a session's operators compute on the GPU, so that a run has done its part when it is queued.

    What an operator on the host has made is copied from memory that ONNX Runtime uses again when the run is over.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return False
    return all(part.ep_name == "CUDAExecutionProvider" for part in session.get_provider_graph_assignment_info())


def _on_host(run: Run, session: Any, names: Mapping[str, str]) -> frozenset[str]:
    """The inputs of a run that its session wants in the host's memory, as some operators want shapes and lengths."""
    if not hasattr(session, "get_input_memory_infos"):
        raise LookupError("this ONNX Runtime does not tell where inputs are read; take onnxruntime-gpu 1.27 or newer")
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    there = {x.name for x, place in places if place.name == "Cpu"}
    return frozenset(name for name in run.inputs if names[name] in there)


def timed(gpu: Gpu, computations: Sequence[Computation]) -> list[float]:
    """Seconds of each run where all are queued one behind the other, as in serving.

    Raises:
        CudaError: the GPU fails.
        Exception: whatever ONNX Runtime raises.
    """
    marks = [Event(gpu.cuda, timed=True) for _ in range(len(computations) + 1)]
    gpu.cuda.enter()
    marks[0].record(gpu.computing)
    for computation, mark in zip(computations, marks[1:], strict=True):
        computation.queue()
        mark.record(gpu.computing)
    gpu.finish()
    return [after.since(before) for before, after in pairwise(marks)]
