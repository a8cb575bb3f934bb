"""Measures how pairs of members get along on one device: their rate side by side over their rate one after the other.

Each member of a pair has a process of its own, as in serving. On cores, which run one batch at a time, the two take
turns batch by batch: what it costs is what each leaves of the other's caches, and the change from one process to the
other. A GPU may overlap their batches: there both run freely. Interference comes and goes with the machine's mood, so
the pair is measured alone and together in turn, several times. Other core sets are left alone: what they cost is in the
profiles, and a ratio does not count it again.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import Field

from ensemble_runtime.config import BatchSize, Device, DeviceKind, Member, Name, Schema, TensorSpec
from ensemble_runtime.devices.binding import bind
from ensemble_runtime.devices.working_memory import keep_memory
from ensemble_runtime.errors import EnsembleError, ManifestError, ModelInvalidError
from ensemble_runtime.measuring import end_with_parent, import_libraries
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.members.loading import load
from ensemble_runtime.members.rows import MadeUpRows
from ensemble_runtime.members.storage import fetch

ROUNDS = 3
SECONDS = 0.4
"""Of each of a round's three runs: one member alone, the other, both."""
PATIENCE = 600.0


class PairsRequest(Schema):
    """Which pairs to measure on one device, and at which batch sizes."""

    members: tuple[Member, ...] = Field(min_length=2)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    device: Device
    batch_sizes: dict[Name, BatchSize]
    pairs: tuple[tuple[Name, Name], ...] = Field(min_length=1)


def interference(request: PairsRequest, cache: Path) -> Iterator[dict[str, Any]]:
    """Measure each pair.

    Yields:
        ``{"member", "otherMember", "digest", "other", "deviceType", "factor"}``; the factor is 1 where the two lose and
        gain nothing, above 1 where they are faster side by side.

    Raises:
        EnsembleError: a model or the device cannot be used.
    """
    if request.device.kind is DeviceKind.SIMULATED:
        raise ManifestError(f"device '{request.device.name}': nothing to measure, a simulated device has no caches")
    members = {member.name: member for member in request.members}
    for one, other in request.pairs:
        models = [fetch(members[name].model, cache) for name in (one, other)]
        factor = _factor(request, [members[one], members[other]], [model.path for model in models])
        yield {
            "member": one,
            "otherMember": other,
            "digest": models[0].sha256,
            "other": models[1].sha256,
            "deviceType": request.device.type,
            "factor": factor,
        }


def _factor(request: PairsRequest, pair: list[Member], paths: list[Path]) -> float:
    cores = request.device.kind is DeviceKind.CPU
    if cores:
        for member in pair:  # once, for both to share by forking
            import_libraries(member)
    context: Any = multiprocessing.get_context("fork" if cores else "spawn")
    # Whose turn it is on cores; a GPU is there for both at once.
    turns = [context.Semaphore(0), context.Semaphore(0)] if cores else [None, None]
    pipes, processes = [], []
    try:
        for i, (member, path) in enumerate(zip(pair, paths, strict=True)):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_member_process, args=(theirs, request, member, path, turns[i], turns[1 - i]), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe, member in zip(pipes, pair, strict=True):
            _answer(pipe, member)  # loaded and warm
        return statistics.median(_round(pipes, pair, turns) for _ in range(ROUNDS))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _round(pipes: list[Connection], pair: list[Member], turns: list[Any]) -> float:
    alone = []
    for pipe, member in zip(pipes, pair, strict=True):
        pipe.send(("alone", SECONDS))
        alone.append(_answer(pipe, member))
    if turns[0] is None:
        for pipe in pipes:
            pipe.send(("alone", SECONDS))
        together = [_answer(pipe, member) for pipe, member in zip(pipes, pair, strict=True)]
        return sum(before / after for before, after in zip(alone, together, strict=True))
    batches = max(3, round(SECONDS / sum(alone)))
    for pipe in pipes:
        pipe.send(("in turn", batches))
    turns[0].release()
    both = [_answer(pipe, member) for pipe, member in zip(pipes, pair, strict=True)]
    turns[0].acquire()  # what the last turn left
    # Either saw all of its own batches, and the other's between them.
    return sum(alone) / (sum(both) / (2 * batches - 1))


def _answer(pipe: Connection, member: Member) -> float:
    """Seconds: of a batch alone, of all batches in turn."""
    if not pipe.poll(PATIENCE):
        raise ModelInvalidError(f"member '{member.name}': did not finish within {PATIENCE:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise ModelInvalidError(f"member '{member.name}': the measuring process died") from None
    if isinstance(answer, EnsembleError):
        raise answer
    return float(answer)


def _member_process(
    pipe: Connection, request: PairsRequest, member: Member, path: Path, own_turn: Any, next_turn: Any
) -> None:
    os.dup2(2, 1)  # what libraries print must not get between the records of the command
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        compute = _ready(request, member, path)
        pipe.send(0.0)
        while True:
            task, amount = pipe.recv()
            pipe.send(_alone(compute, amount) if task == "alone" else _in_turn(compute, amount, own_turn, next_turn))
    except EnsembleError as error:
        pipe.send(error)
    except Exception as error:  # a model may raise anything
        pipe.send(failure(error, f"member '{member.name}' on {request.device.name}: {first_line(error)}"))


def _ready(request: PairsRequest, member: Member, path: Path) -> Callable[[], object]:
    """What computes a batch of the member as its cell does."""
    keep_memory()
    bind(request.device)
    import_libraries(member)
    model = load(member, path, request.inputs, request.outputs, request.device)
    size = request.batch_sizes[member.name]
    return MadeUpRows(member.name, model, request.inputs, request.outputs, size).batch(size)


def _alone(compute: Callable[[], object], seconds: float) -> float:
    """Mean seconds of a batch over a stretch of time."""
    start, batches = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or batches < 3:
        compute()
        batches += 1
    return passed / batches


def _in_turn(compute: Callable[[], object], batches: int, own_turn: Any, next_turn: Any) -> float:
    """Seconds from the first of these batches to the end of the last, when the other computes between any two."""
    own_turn.acquire()
    start = time.perf_counter()
    for left in reversed(range(batches)):
        compute()
        end = time.perf_counter()
        next_turn.release()
        if left:
            own_turn.acquire()
    return end - start
