"""`ModelProfile`, what a model costs on a type of device: measured and kept by the operator, or written by hand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ensemble_operator.api.contradiction import distinct
from ensemble_operator.api.ensemble import MAX_BATCH_SIZES, DeviceType, Metadata
from ensemble_operator.api.schema import keyed_list
from ensemble_runtime.config import MAX_MEMBERS, BatchSize, Partition, Precision, Schema, Sha256


class ProfiledModel(Schema):
    """Which model was measured."""

    sha256: Sha256 = Field(description="Digest of the model file, as in the member's `model.sha256`.")


class ProfilePoint(Schema):
    """The cost of one batch."""

    batch_size: BatchSize = Field(description="Rows of the batch.")
    seconds: float = Field(gt=0, le=3600, allow_inf_nan=False, description="Median time of one batch, in seconds.")
    memory_mib: float = Field(
        ge=0, le=2**24, allow_inf_nan=False, description="Peak memory of a worker: the model and what a batch needs."
    )
    second_memory_mib: float = Field(
        0,
        ge=0,
        le=2**24,
        allow_inf_nan=False,
        description="On a pair of devices, e.g. A100:cpu-1: the same on the second; `memoryMib` is of the first then.",
    )


class Interference(Schema):
    """How this model and another get along on one device."""

    sha256: Sha256 = Field(description="Digest of the other model.")
    factor: float = Field(
        ge=0.05,
        le=20,
        allow_inf_nan=False,
        description="Measured rate of the two side by side over their rate one after the other; above 1 is a gain.",
    )


class ModelProfileSpec(Schema):
    """The measured costs of one model on one type of device at one precision."""

    model: ProfiledModel
    device_type: DeviceType = Field(description="E.g. NVIDIA-A100-SXM4-40GB, or cpu-1 for one core.")
    precision: Precision = Field(Precision.FP32, description="Floating-point type that it computed in.")
    partition: Partition | None = Field(
        None,
        description="On a pair of devices: the member's `partition` that it was measured for; without it of any.",
    )
    points: Annotated[tuple[ProfilePoint, ...], distinct("batch_size")] = Field(
        min_length=1,
        max_length=MAX_BATCH_SIZES,
        description="One for each batch size.",
        json_schema_extra=keyed_list("batchSize"),
    )
    interference: Annotated[tuple[Interference, ...], distinct("sha256")] = Field(
        (),
        max_length=MAX_MEMBERS,
        description="Where it was measured; 1 is assumed of all others.",
        json_schema_extra=keyed_list("sha256"),
    )


class ModelProfile(Schema):
    """What a model costs on a type of device."""

    api_version: Literal["ensembles.dev/v1alpha1"]
    kind: Literal["ModelProfile"]
    metadata: Metadata
    spec: ModelProfileSpec
