"""A member on two devices, as a model like any other."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx

from ensemble_runtime.config import Device, DeviceKind, Member, ModelFormat, Partition, PartitionObjective, TensorSpec
from ensemble_runtime.devices.working_memory import lean
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import first_line, random_rows
from ensemble_runtime.members.model import Array, Model, as_declared
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.agreement import Draw, disagreement, drawn, tolerated
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.instance import SCARCE
from ensemble_runtime.partition.lending import lent
from ensemble_runtime.partition.opening import alternating, opened, overlapping
from ensemble_runtime.partition.planning import LOWER, Costs, Opened, again, ways, ways_to_open
from ensemble_runtime.partition.together import able, together
from ensemble_runtime.partition.trial import Proposal, on_trial

log = logging.getLogger(__name__)


@lean()
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
    best = split(member, path, inputs, outputs, devices, batch_size, booked)
    wanted = member.partition or _QUICKEST
    if wanted.objective is not PartitionObjective.LATENCY:
        return best
    rows = [random_rows(spec, batch_size, 1, np.random.default_rng(0)) for spec in inputs]
    if able(devices):
        with _left_out(member, devices, "what both devices' threads compute"):
            threads = together(member, path, inputs, outputs, devices)
            best = _quicker(threads, best, rows)
            if best is threads:
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
    case = _Case(member, path, inputs, outputs, devices, batch_size)
    try:
        best = _best(case, booked)
    except (ModelInvalidError, OutOfMemoryError) as error:
        raise type(error)(f"member '{member.name}': {error}") from error
    if isinstance(best, PartitionedModel):
        more = {"chunk_steps": best.steps, "weight_bytes": best.held_bytes}
        log.info("member partitioned", extra=_about(member, devices) | more)
    return best


@dataclass(frozen=True)
class _Case:
    """What is loaded, and where."""

    member: Member
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    devices: tuple[Device, Device]
    batch_size: int

    @property
    def wanted(self) -> Partition:
        return self.member.partition or _QUICKEST

    @property
    def small(self) -> bool:
        """Whether bytes count, and not time."""
        return self.wanted.objective is PartitionObjective.MEMORY

    @property
    def on_gpu(self) -> bool:
        return self.devices[0].kind is DeviceKind.GPU

    @cached_property
    def rows(self) -> list[Array]:
        """A full batch."""
        return [random_rows(spec, self.batch_size, 1, np.random.default_rng(0)) for spec in self.inputs]

    def whole(self, device: Device) -> OnnxModel:
        """The model on one device."""
        return OnnxModel(self.member, self.path, self.inputs, self.outputs, device)

    def warn(self, what: str) -> None:
        _warn(self.member, self.devices, what)


InParts = Callable[[Proposal], "PartitionedModel | None"]
"""Opens a proposal: see `_in_parts`."""


def _best(case: _Case, booked: int | None) -> Model:
    """What serves. No more copies of a model are held at a time than it takes: a GPU may have room for a part only."""
    names, draws = _known(case)
    in_parts = partial(_in_parts, case, names, draws)
    proposals = _proposals(case, names, booked if case.small or case.on_gpu else None)
    if case.small:
        return _smallest(case, proposals, in_parts)
    return _quickest_beside_gpu(case, proposals, in_parts) if case.on_gpu else _quickest(case, proposals, in_parts)


def _smallest(case: _Case, proposals: Iterable[Proposal], in_parts: InParts) -> Model:
    """The plan, which was bought with time; with fewer bytes on the first device where that lacks room all the same.

    Raises:
        OutOfMemoryError: There is no room for any plan.
    """
    lacking = ""
    for proposal in proposals:
        try:
            model = in_parts(proposal)
        except OutOfMemoryError as error:
            lacking = str(error)
            case.warn(f"planned again with less room: {lacking}")
            continue
        return model or case.whole(case.devices[case.on_gpu and proposal.saves])
    if lacking:
        raise OutOfMemoryError(lacking)
    return case.whole(case.devices[SCARCE])


def _quickest_beside_gpu(case: _Case, proposals: Iterator[Proposal], in_parts: InParts) -> Model:
    """The plan where it saves time or has to; at no time are two ways of computing on the GPU."""
    gpu, cores = case.devices
    proposal = next(proposals, None)
    if proposal is None:
        return case.whole(gpu)
    alone = math.inf if proposal.saves else _seconds_alone(case)
    return _in_parts_within(case, proposal, in_parts, alone) or case.whole(gpu if math.isfinite(alone) else cores)


def _in_parts_within(case: _Case, proposal: Proposal, in_parts: InParts, alone: float) -> PartitionedModel | None:
    """A proposal, if it takes less time than the whole model does alone."""
    with _left_out(case.member, case.devices, "a partition"), ExitStack() as unused:
        model = in_parts(proposal)
        if model is not None:
            unused.callback(model.close)
            if on_trial([model], case.rows)[0] < _WORTH * alone:
                unused.pop_all()
                return model
    return None


def _quickest(case: _Case, proposals: Iterable[Proposal], in_parts: InParts) -> Model:
    """The quickest of the proposals and of the whole model on the first set of cores."""
    best: Model | None = None
    for proposal in proposals:
        best = best or case.whole(case.devices[SCARCE])
        with _left_out(case.member, case.devices, "a partition"):
            model = in_parts(proposal)
            best = best if model is None else _quicker(model, best, case.rows)
    return best or case.whole(case.devices[SCARCE])


def _in_parts(case: _Case, names: Names, draws: Sequence[Draw], proposal: Proposal) -> PartitionedModel | None:
    """A model in parts; None, and nothing of it is left on a device, where it does not answer as the whole one.

    Raises:
        ModelInvalidError: It cannot be computed so.
        OutOfMemoryError: It has no room.
    """
    with ExitStack() as unused:
        model = PartitionedModel(names, proposal, case.outputs, case.devices)
        unused.callback(model.close)
        why = disagreement(model, draws, tolerated(case.member.precision, case.devices))
        if why is None:
            unused.pop_all()
            return model
    case.warn(f"a partition answers otherwise than the whole model, and is not used: {why}")
    return None


def _seconds_alone(case: _Case) -> float:
    """Of a batch of the whole model on the first device, closed then; infinite where it has no room, or fails."""
    with _left_out(case.member, case.devices, "the whole model"):
        return on_trial([case.whole(case.devices[SCARCE])], case.rows)[0]
    return math.inf


def _known(case: _Case) -> tuple[Names, tuple[Draw, ...]]:
    """What the whole model calls its tensors, and what it answers: on cores, for a GPU may have no room for it."""
    try:
        whole = case.whole(case.devices[case.on_gpu])
    except ModelInvalidError:  # as an LSTM in half precision is on cores
        whole = case.whole(case.devices[SCARCE])
    return Names(whole.input_names, whole.output_names), drawn(whole, case.inputs, case.batch_size)


def _quicker(model: Model, best: Model, rows: Sequence[Array]) -> Model:
    """One of two; the other is closed.

    Raises:
        EnsembleError: One of them fails; the first is closed.
    """
    loser = model
    try:
        seconds, so_far = on_trial([model, best], rows)
        if seconds < (so_far if isinstance(best, PartitionedModel) else _WORTH * so_far):
            loser = best
    finally:
        if isinstance(loser, PartitionedModel):
            loser.close()
    return model if loser is best else best


@contextmanager
def _left_out(member: Member, devices: tuple[Device, Device], what: str) -> Iterator[None]:
    """A way of computing that fails does not serve; another one can."""
    try:
        yield
    except (ModelInvalidError, OutOfMemoryError) as error:
        _warn(member, devices, f"{what} is left out: {error}")


def _proposals(case: _Case, names: Names, booked: int | None) -> Iterator[Proposal]:
    """What to try: the plan, and, for the least time, layers that alternate between two devices of one kind.

    The plan's operators are measured where they are placed, but not how they wait for each other. For the fewest bytes
    further plans follow, each with less room, for as long as nobody is content.
    """
    try:
        graph, costs = _graph(case, names), Costs(case.devices, booked=booked)
        measured = ways(graph, costs)
        yield from _plans(measured, case.wanted if case.small else _QUICKEST, costs, 1 + LOWER * case.small)
    except ModelInvalidError as error:
        if case.small:
            raise
        case.warn(f"served whole: {error}")
        return
    if case.small or case.on_gpu:
        return
    for steps in ways_to_open(graph):
        with suppress(ModelInvalidError):  # which the plan has warned of
            yield from _in_turn(graph, steps)


def _in_turn(graph: Graph, steps: int | None) -> Iterator[Proposal]:
    """Layers that alternate between two devices; and two that lend each other a hand."""
    changed = graph if steps is None else opened(graph, overlapping(graph, steps))
    placement = alternating(changed)
    if any(placement.device.values()):
        yield Proposal(changed, placement, steps)
    if steps and (found := lent(graph, steps)):
        yield Proposal(*found, steps)


def _plans(measured: Sequence[Opened], wanted: Partition, costs: Costs, times: int) -> Iterator[Proposal]:
    """The plan, and plans with less and less room."""
    for _ in range(times):
        choice = again(measured, wanted, costs)
        if choice.opened.steps is None and not choice.beside:
            return
        everything = choice.opened.busy.scarce_bytes((SCARCE,) * len(choice.schedule.device))
        yield Proposal(choice.opened.graph, choice.placement, choice.opened.steps, everything > costs.room)
        costs.lower(choice)


def _about(member: Member, devices: tuple[Device, Device]) -> dict[str, object]:
    return {"member": member.name, "devices": [device.name for device in devices]}


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
        """End the second device's process."""
        self._executor.close()

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`."""
        answers = self._executor.compute([inputs[i] for i in self._inputs])
        return [as_declared(answers[i], spec) for i, spec in self._outputs]


def _graph(case: _Case, names: Names) -> Graph:
    try:
        model = onnx.load_model(str(case.path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise ModelInvalidError(f"cannot be read: {first_line(error)}") from error
    shapes = zip(names.input_names, case.inputs, strict=True)
    return parse(model, {name: (case.batch_size, *spec.shape) for name, spec in shapes})
