"""What a cell on two devices takes, its loading included: one is loaded as cells are, and looked at from outside.

Nothing of a partition is imported here before it is needed: a cell's process has imported no more than its format's
libraries when it begins to load.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ensemble_runtime.config import Device, DeviceKind, Member, TensorSpec
from ensemble_runtime.devices.binding import bind, leave_cores, take_cores
from ensemble_runtime.devices.working_memory import keep_memory
from ensemble_runtime.errors import EnsembleError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.measuring import GpuMeter, end_with_parent, import_libraries, memory_of
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.members.rows import MadeUpRows

_LOOK_SECONDS = 0.02
_BATCHES = 4
_SPARE = 8
"""One part of so many is added: which way of computing wins a trial may be another one the next time."""
_LOADS = 4
"""At most; the second one is the last, as a rule."""


@dataclass(frozen=True)
class Cell:
    """A cell on two devices, as a plan has it."""

    member: Member
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    devices: tuple[Device, Device]
    batch_size: int
    booked: int
    """Bytes of the first device."""


@dataclass(frozen=True)
class Held:
    """The most that a cell took."""

    main_bytes: int
    """Of main memory: anonymous memory of both processes, and what they share. Beside a GPU the libraries as well, of
    which other cells share what their processes had before they were forked."""
    gpu_bytes: int
    """Of the first device if that is a GPU, the context of its process included."""


def held(cell: Cell) -> Held:
    """Load a cell in a process of its own, compute some batches, and end it.

    What it takes of a GPU will be booked for it, and with more booked it may take more: measure its operators all at
    once, or try the whole model. So it is loaded again with that, until it takes no more.

    Raises:
        EnsembleError: It cannot be loaded, or not so; OutOfMemoryError where the process does not survive it.
    """
    most, booked = Held(0, 0), cell.booked
    for _ in range(_LOADS):
        booked = max(booked, most.gpu_bytes)
        found = _loaded(replace(cell, booked=booked))
        most = Held(max(most.main_bytes, found.main_bytes), max(most.gpu_bytes, found.gpu_bytes))
        if found.gpu_bytes <= booked:
            break
    return most


def _loaded(cell: Cell) -> Held:
    first = cell.devices[0]
    # This process has its own context by now. What the other one takes is seen from here: it closes sessions again.
    meter = GpuMeter(first) if first.kind is DeviceKind.GPU else None
    context: Any = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_process, args=(theirs, cell), daemon=True)
    process.start()
    theirs.close()
    try:
        before = _answer(pipe, process, cell)
        most, gpu_bytes = _most(pipe, process.pid, meter)
        _answer(pipe, process, cell)
        most -= before
        return Held(most + most // _SPARE, gpu_bytes)
    finally:
        process.kill()
        process.join()
        pipe.close()


def _most(pipe: Connection, process: int, meter: GpuMeter | None) -> tuple[int, int]:
    """Bytes of main memory and of a GPU that are taken at once until there is an answer."""
    main_bytes = gpu_bytes = 0
    answered = False
    while not answered:
        answered = pipe.poll(_LOOK_SECONDS)
        main_bytes = max(main_bytes, _taken(process))
        gpu_bytes = max(gpu_bytes, meter.peak_bytes() if meter else 0)
    return main_bytes, gpu_bytes


def _answer(pipe: Connection, process: Any, cell: Cell) -> int:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        where = f"member '{cell.member.name}' on {' and '.join(device.name for device in cell.devices)}"
        if process.exitcode == -9:
            raise OutOfMemoryError(f"{where}: the loading process was killed, most likely for lack of memory") from None
        raise ModelInvalidError(f"{where}: the loading process ended with exit code {process.exitcode}") from None
    if isinstance(answer, EnsembleError):
        raise answer
    return int(answer)


def _taken(process: int) -> int:
    """Bytes of main memory that a process and its children took at most since this was last asked."""
    anonymous = 0
    shared: dict[int, int] = {}
    for one in (process, *_children(process)):
        with contextlib.suppress(OSError, KeyError):  # whoever has ended takes nothing
            found = memory_of(one)
            anonymous += found["RssAnon"] + max(0, found["VmHWM"] - found["VmRSS"])
            _forget_peak(one)
            shared |= dict(_shared(Path(f"/proc/{one}/fd").iterdir()))
    return anonymous + sum(shared.values())


def _children(process: int) -> list[int]:
    """Those that are there, whichever of its threads has started them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def _forget_peak(process: int) -> None:
    with contextlib.suppress(OSError):  # where it is forbidden, a peak counts from then on
        Path(f"/proc/{process}/clear_refs").write_text("5")


def _shared(descriptors: Iterable[Path]) -> Iterable[tuple[int, int]]:
    """Bytes of each piece of memory that has a descriptor."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()).startswith("/memfd:"):
                seen = descriptor.stat()
                yield seen.st_ino, seen.st_blocks * 512


def _process(pipe: Connection, cell: Cell) -> None:
    os.dup2(2, 1)  # what libraries print must not get between the records of the command
    threading.Thread(target=end_with_parent, daemon=True).start()
    name, first = cell.member.name, cell.devices[0]
    try:
        keep_memory()  # as in serving
        bind(first)
        left = leave_cores(first, cell.devices[1])
        import_libraries(cell.member)
        pipe.send(0 if first.kind is DeviceKind.GPU else memory_of(os.getpid())["RssAnon"])
        from ensemble_runtime.partition.model import PartitionedModel, load_partitioned

        specs = cell.inputs, cell.outputs
        model = load_partitioned(cell.member, cell.path, *specs, cell.devices, cell.batch_size, cell.booked)
        if not isinstance(model, PartitionedModel):
            take_cores(left)
        compute = MadeUpRows(name, model, *specs, cell.batch_size).batch(cell.batch_size)
        for _ in range(_BATCHES):
            compute()
        pipe.send(0)
        pipe.poll(None)  # until it has been looked at
    except EnsembleError as error:
        pipe.send(error)
    except Exception as error:  # a model may raise anything
        pipe.send(failure(error, f"member '{name}' on {first.name}: {first_line(error)}"))
