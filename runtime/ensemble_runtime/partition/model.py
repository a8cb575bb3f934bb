"""A member on two devices, as a model like any other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx

from ensemble_runtime.config import Device, Member, ModelFormat, Partition, PartitionObjective, TensorSpec
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.checks import first_line
from ensemble_runtime.members.model import Array, Model, as_declared
from ensemble_runtime.members.onnx_model import OnnxModel
from ensemble_runtime.partition.execute import Executor
from ensemble_runtime.partition.graph import Graph, parse
from ensemble_runtime.partition.planning import Choice, Costs, plan

log = logging.getLogger(__name__)


def load_partitioned(
    member: Member,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    devices: tuple[Device, Device],
    batch_size: int,
) -> Model:
    """Measure a model's operators on both devices, decide who computes what, and load it so.

    Args:
        member: A member in ONNX; without a `partition` the least time of a batch is looked for.
        path: The file, its digest already checked.
        inputs: The manifest's inputs.
        outputs: The manifest's outputs.
        devices: The scarce one, to which this process is bound, and a set of cores.
        batch_size: Rows of a full batch, for which the partition is made; others are computed all the same.

    Raises:
        ModelInvalidError: as `members.loading.load`; also other formats, and inputs of variable length.
        OutOfMemoryError: nothing is as quick as the partition asks for.
    """
    if member.model.format is not ModelFormat.ONNX:
        raise ModelInvalidError(
            f"member '{member.name}': only ONNX is computed on two devices, not {member.model.format}"
        )
    if not all(spec.fixed for spec in inputs):
        raise ModelInvalidError(f"member '{member.name}': inputs of variable length are not computed on two devices")
    try:
        whole = OnnxModel(member, path, inputs, outputs, devices[0])
        graph = _graph(path, whole, inputs, batch_size)
        choice = plan(graph, member.partition or _QUICKEST, Costs(devices), chart=False).choice
        if _all_on_first(choice):
            return whole
        model = PartitionedModel(whole, choice, outputs, devices)
    except ModelInvalidError as error:
        raise ModelInvalidError(f"member '{member.name}': {error}") from error
    log.info(
        "member partitioned",
        extra={
            "member": member.name,
            "devices": [device.name for device in devices],
            "chunk_steps": choice.opened.steps,
            "predicted_ms": round(choice.schedule.makespan * 1000, 3),
            "weight_bytes": model.held_bytes,
        },
    )
    return model


_QUICKEST = Partition(objective=PartitionObjective.LATENCY)


class PartitionedModel:
    """A model whose operators are spread over two devices."""

    def __init__(
        self, whole: OnnxModel, choice: Choice, outputs: tuple[TensorSpec, ...], devices: tuple[Device, Device]
    ) -> None:
        """Open the sessions; see `load_partitioned`."""
        graph = choice.opened.graph
        self._executor = Executor(graph, choice.placement, devices)
        self._inputs = [whole.input_names.index(name) for name in graph.inputs]
        self._outputs = [
            (graph.outputs.index(name), spec) for name, spec in zip(whole.output_names, outputs, strict=True)
        ]

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of weights on each device."""
        return self._executor.held_bytes

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`."""
        answers = self._executor.compute([inputs[i] for i in self._inputs])
        return [as_declared(answers[i], spec) for i, spec in self._outputs]


def _graph(path: Path, whole: OnnxModel, inputs: tuple[TensorSpec, ...], batch_size: int) -> Graph:
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise ModelInvalidError(f"cannot be read: {first_line(error)}") from error
    shapes = zip(whole.input_names, inputs, strict=True)
    return parse(model, {name: (batch_size, *spec.shape) for name, spec in shapes})


def _all_on_first(choice: Choice) -> bool:
    return choice.opened.steps is None and not any(choice.schedule.device)
