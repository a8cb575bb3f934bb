"""What a profile of a pair says that a cell takes is what one takes, its loading included."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from types import ModuleType

import onnx
import psutil
import pytest

from ensemble_runtime.config import (
    Device,
    Member,
    ModelFormat,
    ModelSource,
    Partition,
    PartitionObjective,
)
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.measuring import GpuMeter
from ensemble_runtime.partition import answer
from ensemble_runtime.partition import held as looking
from ensemble_runtime.partition.answer import PartitionRequest, partition
from ensemble_runtime.partition.graph import parse
from ensemble_runtime.partition.held import Cell, Held, held
from ensemble_runtime.partition.second import PROCESS_BYTES
from ensemble_runtime.sizes import GPU_CELL_BYTES

MIB = 2**20
HIDDEN, LAYERS, STEPS, ROWS = 512, 4, 12, 2
MEMORY = Partition(objective=PartitionObjective.MEMORY, latency_ms=60_000)


def request_of(models: ModuleType, folder: Path, devices: tuple[Device, Device], hidden: int) -> PartitionRequest:
    path = folder / "model.onnx"
    onnx.save(models.stacked("LSTM", hidden, LAYERS, STEPS), str(path))
    member = Member(name="m", model=ModelSource(uri=path.as_uri(), format=ModelFormat.ONNX), partition=MEMORY)
    return PartitionRequest(member=member, batch_sizes=(ROWS,), devices=devices, chart=False)


CELL = """
import multiprocessing
import os
import pickle
import sys
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.measuring import import_libraries
from ensemble_runtime.partition.held import Cell
cell = pickle.load(sys.stdin.buffer)
bind(cell.devices[0])
import_libraries(cell.member)
print("begins", flush=True)
assert sys.stdin.readline() == "go\\n"
from ensemble_runtime.partition.model import load_partitioned
model = load_partitioned(*vars(cell).values())
import numpy as np
model.predict([np.zeros((cell.batch_size, *cell.inputs[0].shape), np.float32)])
print("ready", flush=True)
sys.stdin.readline()
"""
"""Bound, with its format's libraries, before it loads."""


def private(process: psutil.Process) -> int:
    """Bytes of a process and its children that nobody shares."""
    found = 0
    for one in (process, *process.children()):
        with suppress(psutil.Error):
            found += one.memory_full_info().uss
    return found


def test_a_cell_stays_within_what_its_profile_says(
    recurrent_models: ModuleType, two_devices: tuple[Device, Device], tmp_path: Path
) -> None:
    request = request_of(recurrent_models, tmp_path, two_devices, HIDDEN)
    (record,) = partition(request, tmp_path / "cache")
    size = (tmp_path / "model.onnx").stat().st_size
    profiled = record["memoryBytes"] + record["secondBytes"]
    assert size > 30 * MIB and profiled > record["choice"]["otherBytes"] + PROCESS_BYTES + size

    graph = parse(onnx.load(tmp_path / "model.onnx"), {"x": (ROWS, STEPS, HIDDEN)})
    cell = answer._cell(request, tmp_path / "model.onnx", graph, ROWS, record["memoryBytes"])
    with Popen([sys.executable, "-c", CELL], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(pickle.dumps(cell))
            process.stdin.flush()
            assert process.stdout.readline() == b"begins\n"
            seen = psutil.Process(process.pid)
            before = most = private(seen)
            process.stdin.write(b"go\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], 0.01)[0]:
                most = max(most, private(seen))
            assert process.stdout.readline() == b"ready\n"
            most = max(most, private(seen)) - before
        finally:
            process.kill()
    assert profiled / 3 < most <= profiled


def test_a_cell_that_cannot_be_loaded_says_why(
    recurrent_models: ModuleType, two_devices: tuple[Device, Device], tmp_path: Path
) -> None:
    request = request_of(recurrent_models, tmp_path, two_devices, 8)
    graph = parse(onnx.load(tmp_path / "model.onnx"), {"x": (ROWS, STEPS, 8)})
    cell = answer._cell(request, tmp_path / "model.onnx", graph, ROWS, 0)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelInvalidError, match="member 'm': cannot be loaded by ONNX Runtime"):
        held(cell)


@pytest.mark.parametrize(
    ("planned", "found", "kept"),
    [
        ((100, 70), Held(main_bytes=500, gpu_bytes=0), (100, 400)),
        ((100, 70), Held(main_bytes=150, gpu_bytes=0), (100, 70)),
    ],
)
def test_what_the_first_cores_are_not_planned_with_is_the_second_ones(
    planned: tuple[int, int], found: Held, kept: tuple[int, int]
) -> None:
    record = dict(zip(("memoryBytes", "secondBytes"), planned, strict=True))
    assert tuple(answer._with_what_is_held(record, found, on_gpu=False).values()) == kept


def test_beside_a_gpu_a_pod_asks_for_the_rest_itself() -> None:
    """For a process on a GPU, and once more for what passes through main memory on its way there."""
    record = {"memoryBytes": 100, "secondBytes": 70}
    found = Held(main_bytes=GPU_CELL_BYTES + 1000, gpu_bytes=300)
    assert answer._with_what_is_held(record, found, on_gpu=True) == {"memoryBytes": 300, "secondBytes": 700}
    small = Held(main_bytes=GPU_CELL_BYTES, gpu_bytes=20)
    assert answer._with_what_is_held(record, small, on_gpu=True) == record


class Meter(GpuMeter):
    """Of a GPU on which sessions are opened and closed; the cell is ready with the last look."""

    def __init__(self, seen: list[int], ready: Callable[[], None]) -> None:
        self._seen, self._ready = seen, ready

    def peak_bytes(self) -> int:
        if len(self._seen) == 1:
            self._ready()
        return self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]


def test_the_most_that_a_cell_takes_of_a_gpu_is_not_what_is_left_when_it_has_loaded() -> None:
    ours, theirs = multiprocessing.Pipe()
    main_bytes, gpu_bytes = looking._most(ours, os.getpid(), Meter([10, 900, 40, 300], lambda: theirs.send(0)))
    assert gpu_bytes == 900 and main_bytes > 0


@pytest.mark.parametrize("most", [300, 700])
def test_a_cell_is_looked_at_with_what_will_be_booked_for_it(
    recurrent_models: ModuleType,
    two_devices: tuple[Device, Device],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    """Where the whole model has room it is measured at once, and takes more than one kind of operators at a time."""
    loads: list[int] = []

    def loaded(cell: Cell) -> Held:
        loads.append(cell.booked)
        return Held(main_bytes=1000 - cell.booked, gpu_bytes=300 if cell.booked < 250 else most)

    monkeypatch.setattr(looking, "_loaded", loaded)
    request = request_of(recurrent_models, tmp_path, two_devices, 8)
    graph = parse(onnx.load(tmp_path / "model.onnx"), {"x": (ROWS, STEPS, 8)})
    found = held(answer._cell(request, tmp_path / "model.onnx", graph, ROWS, 200))
    assert found == Held(main_bytes=800, gpu_bytes=most)
    assert loads == ([200, 300] if most == 300 else [200, 300, 700])
