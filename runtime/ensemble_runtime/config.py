"""RuntimeConfig: all that a runtime needs to start, and the words it shares with the manifest.

The one document between the two wings: the planner writes it, the runtime reads it. JSON in camelCase. Imports
neither torch nor aiohttp nor numpy, so that the control plane can use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from ensemble_runtime.serving import Quorum, Serving
from ensemble_runtime.words import (
    MAX_DIMENSIONS,
    MAX_MEMBERS,
    BatchSize,
    Datatype,
    DeviceKind,
    Hosting,
    ModelFormat,
    Name,
    ObjectName,
    PartitionObjective,
    Precision,
    Predictions,
    Rule,
    Schema,
    Sha256,
    TensorName,
    spelled,
)

__all__ = [
    "MAX_DIMENSIONS",
    "MAX_MEMBERS",
    "BatchSize",
    "Cell",
    "Combination",
    "Datatype",
    "Device",
    "DeviceKind",
    "Hosting",
    "Listen",
    "Member",
    "ModelFormat",
    "ModelSource",
    "Name",
    "ObjectName",
    "Partition",
    "PartitionObjective",
    "Precision",
    "Predictions",
    "Quorum",
    "Remote",
    "Rule",
    "RuntimeConfig",
    "Schema",
    "Serving",
    "Sha256",
    "Shard",
    "TensorName",
    "TensorSpec",
    "core_count",
]


class ModelSource(Schema):
    """Where a model file is and what it must be."""

    uri: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://.+", max_length=2048)] = Field(
        description=(
            "file://, http(s)://, or with the matching extra s3://, gs://, hf://; locally relative to the manifest as "
            "file://./name; in a cluster pvc://CLAIM/path for a file on a PersistentVolumeClaim."
        )
    )
    format: ModelFormat = Field(description="How the file is to be read.")
    sha256: Sha256 | None = Field(None, description="Digest of the file; checked before a byte is parsed.")
    allow_pickle: bool = Field(False, description="Permit formats whose loading can run code from the file.")
    secret_name: ObjectName | None = Field(
        None, description="In a cluster: the Secret whose keys are environment variables where the file is fetched."
    )


class TensorSpec(Schema):
    """One input or output, without the batch axis."""

    name: TensorName = Field(description="Name on the wire.")
    datatype: Datatype = Field(description="Element type, in the words of the Open Inference Protocol.")
    shape: tuple[Annotated[int, Field(ge=-1, le=2**31 - 1)], ...] = Field(
        max_length=MAX_DIMENSIONS, description="Dimensions without the batch axis; -1 is variable."
    )
    max_length: int = Field(1024, ge=1, le=2**24, description="Upper bound of each variable dimension.")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if 0 in self.shape:
            raise ValueError("a dimension of 0 holds nothing; expected a positive size, or -1 for variable")
        return self

    @property
    def fixed(self) -> bool:
        """Whether no dimension is variable."""
        return -1 not in self.shape

    @property
    def row_bytes(self) -> int:
        """Most bytes that one row can take."""
        size = self.datatype.itemsize
        for dim in self.shape:
            size *= self.max_length if dim == -1 else dim
        return size


class Partition(Schema):
    """The split of a recurrent ONNX model over two devices, operator by operator."""

    objective: PartitionObjective = Field(
        description="Latency: the least time of a batch. Memory: the least on the scarce device within `latencyMs`."
    )
    latency_ms: float | None = Field(None, gt=0, le=3_600_000, description="Bound of a batch's time; Memory needs it.")

    @model_validator(mode="after")
    def _memory_has_bound(self) -> Self:
        if self.objective is PartitionObjective.MEMORY and self.latency_ms is None:
            raise ValueError("`latencyMs` is required by objective Memory")
        return self


class Member(Schema):
    """One model of the ensemble."""

    name: Name = Field(description="Unique within the ensemble.")
    model: ModelSource
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Share in weighted rules and votes.")
    precision: Precision = Field(Precision.FP32, description="Floating-point type to compute in.")
    shadow: bool = Field(
        False,
        description="Predicts on every request and is compared with the answer; never combined, never waited for.",
    )
    partition: Partition | None = Field(None, description="Permit that one cell of it stands on two devices.")

    @model_validator(mode="after")
    def _partition_splits_onnx(self) -> Self:
        if self.partition is not None and self.model.format is not ModelFormat.ONNX:
            raise ValueError("`partition`: only ONNX models can be split")
        return self


class Combination(Schema):
    """The combination rule and what it works on."""

    rule: Rule = Field(Rule.MEAN, description="How the members' predictions become one.")
    predictions: Predictions = Field(
        Predictions.PROBABILITIES, description="What the members put out; Logits get a softmax per member."
    )
    trim: float = Field(0.2, ge=0, lt=0.5, description="TrimmedMean: the share cut off at each end.")
    model: ModelSource | None = Field(None, description="Stacking: the model that reads all members' outputs.")

    @model_validator(mode="after")
    def _stacking_has_model(self) -> Self:
        if (self.rule is Rule.STACKING) != (self.model is not None):
            raise ValueError("`model` is required by rule Stacking and by no other")
        if self.model is not None and self.model.secret_name is not None and self.model.sha256 is None:
            raise ValueError("`model.sha256` is missing; what is fetched with a Secret is found again by its digest")
        return self

    def contradictions(self, outputs: Sequence[TensorSpec]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Why the rule cannot combine these outputs: the path of each field at fault, and what was expected."""
        rule, predictions = self.rule.value, self.predictions.value
        if self.rule is Rule.STACKING and len(outputs) > 1:
            yield ("combination", "rule"), f"rule {rule} gives one output, expected no more, got {len(outputs)}"
        for i, spec in enumerate(outputs):
            place, last = ("outputs", i, "shape"), spec.shape[-1:]
            if self._along_classes and last in ((), (1,)):
                yield (
                    place,
                    f"rule {rule} on {predictions} works along the classes; expected a last dimension of 2 or more, "
                    f"got {list(spec.shape)}. For plain numbers set combination.predictions: Values",
                )
            if self.rule is Rule.STACKING and last == (-1,):
                yield (
                    place,
                    f"rule {rule} puts the members' values side by side along the last dimension; "
                    f"expected one that is not variable, got {list(spec.shape)}",
                )

    @property
    def _along_classes(self) -> bool:
        """Whether the rule looks at the classes of a row together, along the last axis."""
        apart = (Rule.MEAN, Rule.WEIGHTED_MEAN, Rule.SOFT_VOTE, Rule.STACKING)
        return self.predictions is Predictions.LOGITS or (
            self.predictions is Predictions.PROBABILITIES and self.rule not in apart
        )


def core_count(device_type: str) -> int:
    """Cores of a CPU device, which its type tells: 4 for ``cpu-4``."""
    return int(device_type.removeprefix("cpu-"))


class Device(Schema):
    """A place where cells run.

    A GPU without `uuid` and a CPU device without `cores` are anonymous slots: the runtime finds devices for them when
    it starts (`devices/slots.py`), since in a pod nobody knows before which ones it gets.
    """

    name: Name
    kind: DeviceKind
    type: str = Field(description="What profiles are keyed by, e.g. 'NVIDIA-A100-SXM4-40GB' or 'cpu-1'.")
    memory_bytes: int = Field(gt=0)
    cores: tuple[int, ...] = Field((), description="CPU: the cores that its processes are pinned to.")
    uuid: str | None = Field(None, description="GPU: the UUID that NVML reports, GPU-... or MIG-...")
    pci_bus_id: str | None = Field(None, description="GPU: where it was found; a report, never asked for.")
    seconds: dict[str, dict[int, float]] = Field(
        {}, description="Simulated: member -> batch size -> seconds of one batch; interpolated in between."
    )

    @model_validator(mode="after")
    def _type_tells_cores(self) -> Self:
        if self.kind is DeviceKind.CPU and not self.cores and not re.fullmatch(r"cpu-[1-9][0-9]*", self.type):
            raise ValueError(f"type: got '{self.type}'; a CPU device needs its `cores`, or a type such as cpu-4")
        return self


class Cell(Schema):
    """One worker: a device, a member and the batch size it runs at.

    In place of a device it may name a remote: then the worker is the member's share of that shard, and the batch size
    the most rows that are handed over at once.
    """

    device: Name
    member: Name
    batch_size: BatchSize
    second_device: Name | None = Field(
        None, description="CPU cores that compute a share of the operators of a member with `partition`."
    )
    scarce_bytes: int | None = Field(None, ge=0, description="Of a cell on two: what the plan counts on the first.")


class Remote(Schema):
    """A shard of this ensemble on another node: it has devices, and answers for its members' cells."""

    name: Name = Field(description="What cells name in place of a device.")
    url: Annotated[str, StringConstraints(pattern=r"^http://[^/?#@\s]+$")] = Field(
        description="Where it serves, e.g. http://digits-4f1c-0-1.digits-shards:8000"
    )
    token_file: str = Field(min_length=1, description="File with the token that the ensemble's shards share.")
    connections: int = Field(2, ge=2, le=16, description="Batches on their way to it at once, one a connection.")


class Shard(Schema):
    """What makes a runtime a shard: it answers to the head of its ensemble, and to nobody else."""

    token_file: str = Field(min_length=1, description="File with the token that the ensemble's shards share.")


class Listen(Schema):
    """The address that the gateway serves on."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0: any free port.")


class RuntimeConfig(Schema):
    """All that a runtime needs to start."""

    name: Name
    version: str = "1"
    members: tuple[Member, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    combination: Combination = Combination()
    devices: tuple[Device, ...] = Field(min_length=1)
    cells: tuple[Cell, ...] = Field(min_length=1)
    remotes: tuple[Remote, ...] = Field((), description="Head of an ensemble that spans nodes: its other shards.")
    shard: Shard | None = Field(None, description="A shard that is not the head; `members` are those it has cells for.")
    serving: Serving = Serving()
    listen: Listen = Listen()
    predicted_rows_per_second: float | None = Field(None, description="The plan's promise, shown beside the truth.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        members = {m.name for m in self.members}
        devices = {d.name for d in self.devices} | {r.name for r in self.remotes}
        if len(members) != len(self.members):
            raise ValueError("members: names must be unique")
        if len(devices) != len(self.devices) + len(self.remotes):
            raise ValueError("devices, remotes: names must be unique")
        if self.remotes and self.shard:
            raise ValueError("shard: only the head has remotes")
        if len({(c.device, c.member) for c in self.cells}) != len(self.cells):
            raise ValueError("cells: a device runs a member once; expected distinct (device, member) pairs")
        for i, cell in enumerate(self.cells):
            if cell.member not in members:
                raise ValueError(f"cells[{i}].member: no member is named '{cell.member}'")
            if cell.device not in devices:
                raise ValueError(f"cells[{i}].device: no device is named '{cell.device}', nor a remote")
            self._check_second(f"cells[{i}].secondDevice", cell)
        combined = sum(not member.shadow for member in self.members)
        if not combined:
            raise ValueError("members: every one is a shadow; expected at least one that is combined")
        rule = self.combination.rule
        for path, message in (
            *self.combination.contradictions(self.outputs),
            *self.serving.contradictions(rule, combined),
        ):
            raise ValueError(f"{spelled(path)}: {message}")
        if unserved := members - {c.member for c in self.cells}:
            raise ValueError(f"cells: no cell serves {', '.join(sorted(unserved))}")
        return self

    def _check_second(self, where: str, cell: Cell) -> None:
        if cell.second_device is None:
            return
        cores = {device.name for device in self.devices if device.kind is DeviceKind.CPU}
        if cell.second_device not in cores - {cell.device}:
            raise ValueError(f"{where}: expected another device of CPU cores, got '{cell.second_device}'")
        if all(member.partition is None for member in self.members if member.name == cell.member):
            raise ValueError(f"{where}: member '{cell.member}' has no `partition`")

    def second_device(self, cell: int) -> Device | None:
        """The device of cores beside that of a partitioned cell."""
        name = self.cells[cell].second_device
        return next((device for device in self.devices if device.name == name), None)

    def member_of(self, cell: int) -> int:
        """Index of the member that a cell runs."""
        return next(i for i, member in enumerate(self.members) if member.name == self.cells[cell].member)

    def cells_of(self, member: str) -> tuple[int, ...]:
        """Indices of the cells that run a member."""
        return tuple(i for i, cell in enumerate(self.cells) if cell.member == member)
