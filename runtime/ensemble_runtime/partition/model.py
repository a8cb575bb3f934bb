"""A member on two devices, as a model like any other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ensemble_runtime.config import Device, DeviceKind, Member, ModelFormat, Partition, PartitionObjective, TensorSpec
from ensemble_runtime.devices.working_memory import give_memory_back, keep_memory
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import first_line, random_rows
from ensemble_runtime.members.model import Array, Model, as_declared
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.agreement import Draw, disagreement, drawn, tolerated
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.instance import SCARCE
from ensemble_runtime.partition.opening import alternating, opened, overlapping
from ensemble_runtime.partition.planning import Costs, again, ways_to_open
from ensemble_runtime.partition.together import able, together
from ensemble_runtime.partition.trial import Proposal, on_trial

log = logging.getLogger(__name__)


def load_partitioned(
    member: Member,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    devices: tuple[Device, Device],
    batch_size: int,
    booked: int | None = None,
) -> Model:
    """Load a model so that both devices compute it, in the quickest way that was found: see `split` and `together`.

    Args and errors as of `split`.
    """
    give_memory_back()
    try:
        return _loaded(member, path, inputs, outputs, devices, batch_size, booked)
    finally:
        keep_memory()


def _loaded(
    member: Member,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    devices: tuple[Device, Device],
    batch_size: int,
    booked: int | None,
) -> Model:
    best = split(member, path, inputs, outputs, devices, batch_size, booked)
    wanted = member.partition or _QUICKEST
    if wanted.objective is not PartitionObjective.LATENCY:
        return best
    rows = [random_rows(spec, batch_size, 1, np.random.default_rng(0)) for spec in inputs]
    if able(devices):
        threads = together(member, path, inputs, outputs, devices)
        if _quicker(threads, best, rows):
            if isinstance(best, PartitionedModel):
                best.close()
            best = threads
            log.info("member on both devices' threads", extra=_about(member, devices))
    if wanted.latency_ms is not None and (took := 1000 * on_trial([best], rows)[0]) > wanted.latency_ms:
        told = "a batch takes %.3g ms, latencyMs permits %.3g"
        log.warning(told, took, wanted.latency_ms, extra=_about(member, devices))
    return best


def split(
    member: Member,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    devices: tuple[Device, Device],
    batch_size: int,
    booked: int | None = None,
) -> Model:
    """Measure a model's operators on both devices, decide who computes what, and load it so.

    What was planned comes up, also where it is slower now than `latencyMs`. What does not answer as the whole model
    does is not served: that is then computed whole on the first device, or by the cores where a GPU has no room for it.
    What cannot be split is computed whole as well where the least time is looked for.

    Args:
        member: A member in ONNX; without a `partition` the least time of a batch is looked for.
        path: The file, its digest already checked.
        inputs: The manifest's inputs.
        outputs: The manifest's outputs.
        devices: The scarce one, to which this process is bound, and a set of cores.
        batch_size: Rows of a full batch, for which the partition is made; others are computed all the same.
        booked: Bytes that the plan counts on the first device; for the least time they bind on a GPU only.

    Raises:
        ModelInvalidError: as `members.loading.load`; also other formats, and inputs of variable length.
        OutOfMemoryError: it has no room.
    """
    if member.model.format is not ModelFormat.ONNX:
        raise ModelInvalidError(
            f"member '{member.name}': only ONNX is computed on two devices, not {member.model.format}"
        )
    if not all(spec.fixed for spec in inputs):
        raise ModelInvalidError(f"member '{member.name}': inputs of variable length are not computed on two devices")
    wanted = member.partition or _QUICKEST
    small, gpu = wanted.objective is PartitionObjective.MEMORY, devices[0].kind is DeviceKind.GPU
    rows = [random_rows(spec, batch_size, 1, np.random.default_rng(0)) for spec in inputs]
    opened_on = partial(OnnxModel, member, path, inputs, outputs)
    # No more copies of a model are held at a time than it takes: a GPU may have room for a part of it only.
    best: Model | None = None
    crowded, alone = False, 0.0
    try:
        names, draws = _known(opened_on, devices, inputs, batch_size)
        parsed = partial(_graph, path, names, inputs, batch_size)
        for proposal in _proposals(parsed, member, devices, booked if small or gpu else None):
            crowded = proposal.saves
            # With a bound of bytes there is one proposal, and it was bought with time.
            tried = not small and not crowded
            if tried and gpu:
                alone = _seconds_alone(opened_on, devices[0], rows)
            elif tried and best is None:
                best = opened_on(devices[0])
            try:
                model: Model = PartitionedModel(names, proposal, outputs, devices)
            except ModelInvalidError as error:
                if small:
                    raise
                _warn(member, devices, f"a partition is left out: {error}")
                continue
            why = disagreement(model, draws, tolerated(member.precision, devices))
            if why is not None:
                _warn(member, devices, f"a partition answers otherwise than the whole model, and is not used: {why}")
            elif not tried or (_quicker(model, best, rows) if best else on_trial([model], rows)[0] < _WORTH * alone):
                best, model = model, best or model
            if model is not best and isinstance(model, PartitionedModel):
                model.close()
        if best is None:
            best = opened_on(devices[gpu and crowded])
    except (ModelInvalidError, OutOfMemoryError) as error:
        raise type(error)(f"member '{member.name}': {error}") from error
    if isinstance(best, PartitionedModel):
        _log(member, devices, best)
    return best


def _seconds_alone(opened_on: Callable[[Device], OnnxModel], gpu: Device, rows: Sequence[Array]) -> float:
    """Of a batch of the whole model, which is closed then; infinite where there is no room for it."""
    try:
        return on_trial([opened_on(gpu)], rows)[0]
    except OutOfMemoryError:
        return math.inf


def _known(
    opened_on: Callable[[Device], OnnxModel],
    devices: tuple[Device, Device],
    inputs: tuple[TensorSpec, ...],
    batch_size: int,
) -> tuple[Names, tuple[Draw, ...]]:
    """What the whole model calls its tensors, and what it answers: on cores, for a GPU may have no room for it."""
    try:
        whole = opened_on(devices[1] if devices[0].kind is DeviceKind.GPU else devices[0])
    except ModelInvalidError:  # as an LSTM in half precision is on cores
        whole = opened_on(devices[0])
    return Names(whole.input_names, whole.output_names), drawn(whole, inputs, batch_size)


def _quicker(model: Model, best: Model, rows: Sequence[Array]) -> bool:
    seconds, so_far = on_trial([model, best], rows)
    return seconds < (so_far if isinstance(best, PartitionedModel) else _WORTH * so_far)


def _proposals(
    parsed: Callable[[], Graph], member: Member, devices: tuple[Device, Device], booked: int | None
) -> Iterator[Proposal]:
    """What to try: the plan, and, for the least time, layers that alternate between two devices of one kind.

    The plan's operators are measured where they are placed, but not how they wait for each other.
    """
    wanted = member.partition or _QUICKEST
    quick = wanted.objective is PartitionObjective.LATENCY
    try:
        graph, costs = parsed(), Costs(devices, booked=booked)
        choice = again(graph, _QUICKEST if quick else wanted, costs)
    except ModelInvalidError as error:
        if not quick:
            raise
        _warn(member, devices, f"served whole: {error}")
        return
    if choice.opened.steps is not None or choice.beside:
        everything = choice.opened.busy.scarce_bytes((SCARCE,) * len(choice.schedule.device))
        yield Proposal(choice.opened.graph, choice.placement, choice.opened.steps, everything > costs.room)
    if not quick or devices[0].kind is not devices[1].kind:
        return
    for steps in ways_to_open(graph):
        try:
            changed = graph if steps is None else opened(graph, overlapping(graph, steps))
        except ModelInvalidError:  # which the plan has warned of
            continue
        placement = alternating(changed)
        if any(placement.device.values()):
            yield Proposal(changed, placement, steps)


def _about(member: Member, devices: tuple[Device, Device]) -> dict[str, object]:
    return {"member": member.name, "devices": [device.name for device in devices]}


def _log(member: Member, devices: tuple[Device, Device], model: PartitionedModel) -> None:
    more = {"chunk_steps": model.steps, "weight_bytes": model.held_bytes}
    log.info("member partitioned", extra=_about(member, devices) | more)


def _warn(member: Member, devices: tuple[Device, Device], what: str) -> None:
    log.warning(what, extra=_about(member, devices))


_WORTH = 0.95
"""Of the whole model's time; a partition that saves less may be slower in a while."""
_QUICKEST = Partition(objective=PartitionObjective.LATENCY)


@dataclass(frozen=True)
class Names:
    """What a model calls its inputs and outputs, in the manifest's order."""

    input_names: Sequence[str]
    output_names: Sequence[str]


class PartitionedModel:
    """A model whose operators are spread over two devices."""

    def __init__(
        self,
        names: Names | OnnxModel,
        proposal: Proposal,
        outputs: tuple[TensorSpec, ...],
        devices: tuple[Device, Device],
    ) -> None:
        """Open the sessions; see `load_partitioned`."""
        graph, self.steps = proposal.graph, proposal.steps
        self._executor = Executor(graph, proposal.placement, devices)
        self._inputs = [names.input_names.index(name) for name in graph.inputs]
        self._outputs = [
            (graph.outputs.index(name), spec) for name, spec in zip(names.output_names, outputs, strict=True)
        ]

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of weights on each device."""
        return self._executor.held_bytes

    def close(self) -> None:
        """End the second device's thread."""
        self._executor.close()

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`."""
        answers = self._executor.compute([inputs[i] for i in self._inputs])
        return [as_declared(answers[i], spec) for i, spec in self._outputs]


def _graph(path: Path, names: Names, inputs: tuple[TensorSpec, ...], batch_size: int) -> Graph:
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise ModelInvalidError(f"cannot be read: {first_line(error)}") from error
    shapes = zip(names.input_names, inputs, strict=True)
    return parse(model, {name: (batch_size, *spec.shape) for name, spec in shapes})
