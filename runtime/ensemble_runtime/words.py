"""What the documents of both wings are made of: their base, names and choices. All are read from `config`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

MAX_DIMENSIONS = 8
MAX_MEMBERS = 256

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]+$", max_length=128)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
BatchSize = Annotated[int, Field(ge=1, le=65536)]


def spelled(path: tuple[str | int, ...]) -> str:
    """A path into a document as a person writes it, e.g. members[2].model.format."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


class Schema(BaseModel):
    """Base of every document: immutable, camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ModelFormat(StrEnum):
    """How a model file is to be read."""

    TORCH_EXPORT = "TorchExport"
    TORCH_SCRIPT = "TorchScript"
    ONNX = "ONNX"


class Precision(StrEnum):
    """The floating-point type that a member computes in."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"


class DeviceKind(StrEnum):
    """What a device is made of."""

    GPU = "GPU"
    CPU = "CPU"
    SIMULATED = "Simulated"


class Datatype(StrEnum):
    """Tensor element types of the Open Inference Protocol v2 that a tensor model can take."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 1 if self is Datatype.BOOL else int("".join(filter(str.isdigit, self.value))) // 8

    @property
    def numpy(self) -> str:
        """The little-endian numpy type string of one element, e.g. ``<f4``."""
        kind = {"B": "b", "U": "u", "I": "i", "F": "f"}[self.value[0]]
        return "|b1" if self is Datatype.BOOL else f"<{kind}{self.itemsize}"


class Rule(StrEnum):
    """How the members' predictions become one."""

    MEAN = "Mean"
    WEIGHTED_MEAN = "WeightedMean"
    SOFT_VOTE = "SoftVote"
    HARD_VOTE = "HardVote"
    MEDIAN = "Median"
    TRIMMED_MEAN = "TrimmedMean"
    GEOMETRIC_MEAN = "GeometricMean"
    MAXIMUM = "Maximum"
    STACKING = "Stacking"


class Predictions(StrEnum):
    """What the members' outputs are: class probabilities, logits (softmax is applied per member), or plain values."""

    PROBABILITIES = "Probabilities"
    LOGITS = "Logits"
    VALUES = "Values"


class Hosting(StrEnum):
    """How many cells one prediction process hosts: one, or all those of its device."""

    PER_CELL = "PerCell"
    PER_DEVICE = "PerDevice"


class PartitionObjective(StrEnum):
    """What the split of one member over two devices is to be best at."""

    LATENCY = "Latency"
    MEMORY = "Memory"
