"""The shared-memory arena: where every tensor and every queue of an ensemble lives.

One anonymous file in /dev/shm (it has no name, so nothing can be left behind), mapped by every process. The layout is
a pure function of the RuntimeConfig: processes agree on it without talking. One writer for each array, named below.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_runtime.config import MAX_DIMENSIONS, Hosting, RuntimeConfig, TensorSpec
from ensemble_runtime.devices.cgroup import available_memory
from ensemble_runtime.errors import SharedMemoryError
from ensemble_runtime.sizes import queue_rows, row_stride, tensor_bytes
from ensemble_runtime.span import folded_by_shards

SHM = Path("/dev/shm")  # noqa: S108  # no temporary file: the memory file system itself
SPARSE_BYTES = 2**42
LINE = 64
"""Arrays start on cache lines of their own, so that writers do not disturb each other."""

ENTRY_BYTES = 16
"""A queue entry or a report: four 32-bit words (request slot, first row, row count, attempts or code)."""
TEXT_BYTES = 512

# States of a cell, written by its process, and by the supervisor when that process is gone.
STARTING, LOADING, WARMING, READY, FAILED = range(5)
STATE_NAMES = ("Starting", "Loading", "Warming", "Ready", "Failed")

# Codes of a report: what became of a member's rows of a request. 0 in `status` means: not arrived.
ARRIVED, RAISED, MISSHAPEN, NOT_FINITE, DIED, SKIPPED, UNREACHED = range(1, 8)
REASONS = {
    0: "did not answer in time",
    RAISED: "raised an error",
    MISSHAPEN: "returned a wrong shape",
    NOT_FINITE: "returned NaN or infinity",
    DIED: "died or hung on this request",
    SKIPPED: "was skipped",
    UNREACHED: "is out of reach",
}

# Bits of a request's flags, written by the gateway.
ACTIVE, CANCELLED, DISAGREE, INDIVIDUAL = 1, 2, 4, 8
HURRIED = 16  # a deadline, at which an answer of some members is enough
# Phases of a request, written by the gateway.
OPEN, ANSWERED = 0, 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that everything else follows from."""

    rows: int
    slots: int
    members: int
    cells: int
    processes: tuple[tuple[int, ...], ...]
    """The cells that each prediction process hosts."""
    reporters: tuple[int, ...]
    """For each cell the one whose ring it reports on; itself, but for the cells of one connection to a remote."""
    segments: tuple[int, ...]
    """For each member the most rows of one queue entry: the smallest batch size among its cells."""
    input_strides: tuple[int, ...]
    output_strides: tuple[int, ...]

    def process_of(self, cell: int) -> int:
        """The prediction process that hosts a cell."""
        return next(process for process, hosted in enumerate(self.processes) if cell in hosted)

    @staticmethod
    def of(config: RuntimeConfig) -> Geometry:
        """Derive the geometry from the configuration."""
        rows = queue_rows(config)
        cells = range(len(config.cells))
        # A remote has one process for all its connections: members that go there together are taken together.
        together = {remote.name for remote in config.remotes}
        if config.serving.hosting is Hosting.PER_DEVICE:
            together |= {device.name for device in config.devices}
        hosts = [cell.device if cell.device in together else i for i, cell in enumerate(config.cells)]
        processes = tuple(tuple(c for c in cells if hosts[c] == host) for host in dict.fromkeys(hosts))
        segments = tuple(min(config.cells[c].batch_size for c in config.cells_of(m.name)) for m in config.members)
        return Geometry(
            rows=rows,
            slots=min(config.serving.queue_requests, rows),
            members=len(config.members),
            cells=len(config.cells),
            processes=processes,
            reporters=_reporters(config),
            segments=segments,
            input_strides=tuple(map(row_stride, config.inputs)),
            output_strides=tuple(map(row_stride, config.outputs)),
        )


class Arena:
    """Typed views of the shared memory.

    Words that are written one at a time on the fast path are `memoryview`s, which read and write faster than numpy
    scalars; what is computed on in bulk is a numpy array.
    """

    def __init__(self, config: RuntimeConfig, fd: int) -> None:
        self.config = config
        self.geometry = geo = Geometry.of(config)
        self.fd = fd
        self._cut = _Cutter(mmap.mmap(fd, os.fstat(fd).st_size))
        rows, slots, members, cells = geo.rows, geo.slots, geo.members, geo.cells
        self.ring_capacity = capacity = _power_of_two(rows)

        # Tensors. Inputs: the gateway. Member outputs: the member's cells. Combined outputs: the combiner.
        self.inputs = [self._cut.bytes(rows * stride) for stride in geo.input_strides]
        self.outputs = [self._cut.bytes(rows * stride) for stride in geo.output_strides]
        self.member_outputs = [
            [self._cut.bytes(rows * stride) for stride in geo.output_strides] for _ in range(members)
        ]
        self.partials = {
            member: [self._cut.bytes(rows * stride) for stride in geo.output_strides]
            for member in sorted(folded_by_shards(config))
        }
        """Of members that their shard folds: what the combiner takes in place of their outputs."""
        self.disagreement: NDArray[np.float32] = self._cut.array((rows, 4), "f4")

        # The request table. The gateway writes all of it (the supervisor, once it has died) but `used`, the two
        # counters, which the combiner takes down, and `output_shapes`, which it clears and cells write.
        self.generation = self._cut.array((slots,), "u4")  # counts the requests that were sent to the members
        self.base = self._cut.array((slots,), "u4")
        self.row_count = self._cut.array((slots,), "u4")
        self.flags = self._cut.array((slots,), "u4")
        self.min_members = self._cut.array((slots,), "u4")
        self.phase = self._cut.array((slots,), "u4")
        self.remaining = self._cut.array((slots,), "i4")
        """Rows times combined members that nobody has accounted for yet."""
        self.shadowed = self._cut.array((slots,), "i4")
        """The same of the shadow members."""
        self.used = self._cut.array((slots, members), "u1")
        self.input_shapes = self._cut.array((slots, len(config.inputs), MAX_DIMENSIONS), "i4")
        self.output_shapes = self._cut.array((slots, members, len(config.outputs), MAX_DIMENSIONS), "i4")
        self.status = self._cut.array((members, rows), "u1")
        """What became of each row at each member; zeroed by the gateway, written by the combiner."""

        # Queues: three for each member (taken in this order), reports for each cell and one for the supervisor,
        # controls from the gateway to the combiner, completions back.
        self.queues = [[Ring.cut(self._cut, capacity) for _ in ("again", "high", "normal")] for _ in range(members)]
        self.sending = self._cut.words(2 + members)
        """What the gateway sends: the first generation, the queue, and the tail that each member's will have then."""
        self.lock_owner = self._cut.words(members)
        # Cells of one connection to a remote share a ring: what they report together is seen together.
        sharing = Counter((*geo.reporters, cells))
        rings = {reporter: Ring.cut(self._cut, _power_of_two(rows * shared)) for reporter, shared in sharing.items()}
        self.reports = [rings[reporter] for reporter in (*geo.reporters, cells)]
        self.controls = Ring.cut(self._cut, _power_of_two(4 * slots))
        self.completions = Ring.cut(self._cut, _power_of_two(4 * slots))

        # Cells: the journal says what a cell has taken and not reported yet. Written by its process.
        self.journals = [
            Journal(self._cut.words(4), self._cut.bytes(cell.batch_size * ENTRY_BYTES)) for cell in config.cells
        ]
        self.state = self._cut.words(cells)
        self.batch_started = self._cut.words(cells)
        """CLOCK_MONOTONIC nanoseconds at which the running batch began; 0: none runs."""
        self.combining_since = self._cut.words(1)
        """The same of the combiner's turn: a stacking model may hang as well."""
        self.counters: NDArray[np.uint64] = self._cut.array((cells, 4), "u8")
        """Batches, rows, busy nanoseconds, errors."""
        self.restarts = self._cut.words(cells)
        self.remotes = [self._cut.words(4) for _ in config.remotes]
        """Requests, bytes sent, bytes received, lost connections; written by the remote's process."""
        self.idle = self._cut.words(len(geo.processes))
        """Whether a process could take work at once: it has nothing in hand."""
        self.pids = self._cut.words(len(geo.processes))
        self.service_pids = self._cut.words(len(SERVICES))
        self.errors = [Text(self._cut.bytes(TEXT_BYTES)) for _ in range(cells)]
        self.combiner_error = Text(self._cut.bytes(TEXT_BYTES))
        self.observed = [Text(self._cut.bytes(TEXT_BYTES)) for _ in range(len(geo.processes))]
        self.size = self._cut.offset

    @staticmethod
    def create(config: RuntimeConfig) -> Arena:
        """Make the arena, with every page reserved, so that no write can fail later.

        Raises:
            SharedMemoryError: /dev/shm or the memory has less room than the arena needs; the message names both.
        """
        fd = None
        try:
            fd = os.open(SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            size = _size(config, fd)
            _check_room(size, fd)
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
            return Arena(config, fd)
        except (OSError, SharedMemoryError) as error:
            if fd is not None:
                os.close(fd)
            if isinstance(error, SharedMemoryError):
                raise
            raise SharedMemoryError(f"cannot reserve shared memory in {SHM}: {error.strerror}") from error

    def partial_rows(self, member: int, output: int) -> NDArray[np.generic]:
        """What a member of a shard that folds contributes to the combination of an output, (rows, *shape)."""
        return _table(self.partials[member][output], self.config.outputs[output], self.geometry.rows)

    def member_rows(self, member: int, output: int) -> NDArray[np.generic]:
        """A member's area of a fixed-shape output, (rows, *shape)."""
        return _table(self.member_outputs[member][output], self.config.outputs[output], self.geometry.rows)

    def input_rows(self, index: int) -> NDArray[np.generic]:
        """A fixed-shape input, (rows, *shape)."""
        return _table(self.inputs[index], self.config.inputs[index], self.geometry.rows)

    def output_rows(self, index: int) -> NDArray[np.generic]:
        """A fixed-shape combined output, (rows, *shape)."""
        return _table(self.outputs[index], self.config.outputs[index], self.geometry.rows)


SERVICES = ("supervisor", "gateway", "combiner", "forge")


class Text:
    """A short message in the arena: a length, then UTF-8."""

    def __init__(self, area: memoryview) -> None:
        self._area = area

    def set(self, message: str) -> None:
        """Write the message, cut to what fits."""
        data = message.encode("utf-8", "replace")[: len(self._area) - 2]
        self._area[2 : 2 + len(data)] = data
        self._area[:2] = len(data).to_bytes(2, "little")

    def get(self) -> str:
        """Read the message."""
        size = int.from_bytes(self._area[:2], "little")
        return bytes(self._area[2 : 2 + size]).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Journal:
    """What a cell has in hand. Words: entries in hand, its report ring's tail when it took them, ring, first index."""

    words: memoryview
    entries: memoryview


class Ring:
    """A ring of entries with free-running 64-bit head and tail; the capacity is a power of two that cannot overflow.

    It cannot: entries in flight are never more than rows in flight, each entry having a row of its own.
    """

    __slots__ = ("_ends", "_entries", "_mask", "_rows", "_slots", "table")

    def __init__(self, ends: memoryview, entries: memoryview, capacity: int) -> None:
        self._ends = ends
        self._entries = entries
        self._slots = entries.cast("I")[::4]
        self._rows = entries.cast("I")[2::4]
        self.table: NDArray[np.uint32] = np.frombuffer(entries, "u4").reshape(capacity, 4)
        self._mask = capacity - 1

    @staticmethod
    def cut(cut: _Cutter, capacity: int) -> Ring:
        """Cut a ring of `capacity` entries."""
        # Head and tail on lines of their own: their writers are different processes.
        return Ring(cut.words(2 * LINE // 8), cut.bytes(capacity * ENTRY_BYTES), capacity)

    @property
    def head(self) -> int:
        """Index of the first entry; its consumer writes it."""
        return self._ends[0]

    @head.setter
    def head(self, value: int) -> None:
        self._ends[0] = value

    @property
    def tail(self) -> int:
        """Index behind the last entry; its producer writes it."""
        return self._ends[8]

    def __len__(self) -> int:
        # Head first: another consumer may take between the two reads, and the tail is never behind an earlier head.
        head = self._ends[0]
        return int(self._ends[8] - head)

    def push(self, blob: bytes | bytearray | memoryview) -> None:
        """Append entries, then publish them with one store."""
        tail = self._ends[8]
        count = len(blob) // ENTRY_BYTES
        begin = (tail & self._mask) * ENTRY_BYTES
        end = begin + len(blob)
        if end <= len(self._entries):
            self._entries[begin:end] = blob
        else:
            first = len(self._entries) - begin
            self._entries[begin:] = blob[:first]
            self._entries[: end - len(self._entries)] = blob[first:]
        self._ends[8] = tail + count

    def first_slot(self) -> int:
        """The request slot of the first entry."""
        return self._slots[self._ends[0] & self._mask]

    def rows(self, count: int) -> list[int]:
        """The rows of each of the first `count` entries."""
        begin = self._ends[0] & self._mask
        end = begin + count
        if end <= self._mask + 1:
            return self._rows[begin:end].tolist()
        return self._rows[begin:].tolist() + self._rows[: end - self._mask - 1].tolist()

    def copy(self, count: int, area: memoryview) -> None:
        """Copy the first `count` entries to the beginning of an area."""
        begin = (self._ends[0] & self._mask) * ENTRY_BYTES
        end = begin + count * ENTRY_BYTES
        whole = len(self._entries)
        if end <= whole:
            area[: end - begin] = self._entries[begin:end]
        else:
            area[: whole - begin] = self._entries[begin:]
            area[whole - begin : end - begin] = self._entries[: end - whole]

    def peek(self, count: int) -> NDArray[np.uint32]:
        """The first `count` entries, (count, 4), copied where they wrap around."""
        begin = self._ends[0] & self._mask
        end = begin + count
        if end <= self._mask + 1:
            return self.table[begin:end]
        return np.concatenate((self.table[begin:], self.table[: end - self._mask - 1]))


class _Cutter:
    """Hands out consecutive, aligned pieces of a mapping."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._view = memoryview(mapping)
        self.offset = 0

    def bytes(self, size: int) -> memoryview:
        begin = self.offset
        self.offset = begin + (size + LINE - 1) // LINE * LINE
        return self._view[begin : begin + size]

    def words(self, count: int) -> memoryview:
        return self.bytes(8 * count).cast("Q")

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return np.frombuffer(self.bytes(prod(shape) * np.dtype(dtype).itemsize), dtype).reshape(shape)


def _table(area: memoryview, spec: TensorSpec, rows: int) -> NDArray[np.generic]:
    table: NDArray[np.generic] = np.frombuffer(area, spec.datatype.numpy).reshape(rows, *spec.shape)
    return table


def _reporters(config: RuntimeConfig) -> tuple[int, ...]:
    reporters = list(range(len(config.cells)))
    for remote in config.remotes:
        cells = [i for i, cell in enumerate(config.cells) if cell.device == remote.name]
        width = max(1, len(cells) // remote.connections)
        for place, cell in enumerate(cells):
            reporters[cell] = cells[place // width * width]
    return tuple(reporters)


def _power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def _size(config: RuntimeConfig, fd: int) -> int:
    """Bytes of the arena; only of its tensors where these alone are beyond any machine."""
    geo = Geometry.of(config)
    tensors = geo.rows * tensor_bytes(config)
    if tensors > SPARSE_BYTES // 2:
        return tensors
    # Laid out once over a sparse file: what it came to is the size, so no second list of sizes is kept.
    os.ftruncate(fd, SPARSE_BYTES)
    size = Arena(config, fd).size
    os.ftruncate(fd, 0)
    return size


def _check_room(size: int, fd: int) -> None:
    found = os.fstatvfs(fd)
    free, memory = found.f_bavail * found.f_frsize, available_memory()
    needed = f"the arena needs {size / 2**20:.0f} MiB of shared memory"
    if size > free:
        remedy = "make it larger, or lower serving.queueRows"
        raise SharedMemoryError(f"{needed}, {SHM} has {free / 2**20:.0f} MiB free; {remedy}")
    if size > memory:  # to reserve it would end in the kernel's killing somebody
        raise SharedMemoryError(f"{needed}, {memory / 2**20:.0f} MiB of memory are available; lower serving.queueRows")
