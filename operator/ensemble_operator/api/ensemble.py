"""`InferenceEnsemble`, the document that a user writes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from ensemble_operator.api.contradiction import Path, distinct, refuse
from ensemble_operator.api.objective import Objective
from ensemble_operator.api.placement import Placement
from ensemble_operator.api.rollout import Mode, Preemption, Rollout
from ensemble_operator.api.schema import SET, keyed_list
from ensemble_operator.api.status import EnsembleStatus
from ensemble_runtime.config import (
    MAX_MEMBERS,
    BatchSize,
    Combination,
    DeviceKind,
    Member,
    Name,
    Rule,
    Schema,
    Serving,
    TensorSpec,
)

API_VERSION = "ensembles.dev/v1alpha1"
MAX_TENSORS = 64
MAX_BATCH_SIZES = 32
MAX_REPLICAS = 1000

_WEIGHTED = (Rule.WEIGHTED_MEAN, Rule.SOFT_VOTE, Rule.HARD_VOTE)

ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
DeviceType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$", max_length=128)]
DeviceKinds = Annotated[tuple[DeviceKind, ...], Field(min_length=1, max_length=len(DeviceKind)), distinct()]
Tensors = Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=MAX_TENSORS), distinct("name")]


class Metadata(Schema):
    """The part of an object's metadata that matters here; what the API server adds is ignored."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = Field({})
    annotations: dict[str, str] = Field({})


class EnsembleMetadata(Metadata):
    """Metadata whose name can be that of the ensemble's Service."""

    name: ServiceName


class MemberSpec(Member):
    """One model of the ensemble, with its weight and what the planner may do with it."""

    batch_sizes: Annotated[tuple[BatchSize, ...], distinct()] = Field(
        (1, 2, 4, 8, 16, 32, 64, 128),
        min_length=1,
        max_length=MAX_BATCH_SIZES,
        description="Batch sizes that the planner may choose from.",
        json_schema_extra=SET,
    )
    device_kinds: DeviceKinds = Field(
        tuple(DeviceKind),
        description="Kinds of device that may run it.",
        json_schema_extra=SET,
    )


class SimulatedDevices(Schema):
    """Devices that nobody has: they hold what they are said to hold and take the time that a ModelProfile states."""

    type: DeviceType = Field(description="What profiles are keyed by, e.g. NVIDIA-A100-SXM4-40GB.")
    count: int = Field(1, ge=1, le=4096, description="How many.")
    memory_mib: int = Field(ge=1, le=2**24, description="Memory of each.")


class DeviceChoice(Schema):
    """Which devices may serve the ensemble."""

    kinds: DeviceKinds | None = Field(
        None,
        description="Default: Simulated where `simulated` lists some, otherwise GPU and CPU.",
        json_schema_extra=SET,
    )
    max: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Most devices of one copy. Default: in a cluster as many as there are members, locally no limit.",
    )
    cpu_cores_per_device: int = Field(1, ge=1, le=1024, description="Cores that make up one CPU device.")
    simulated: Annotated[tuple[SimulatedDevices, ...], distinct("type")] = Field(
        (),
        max_length=64,
        description="Simulated devices, for trying a plan without the hardware.",
        json_schema_extra=keyed_list("type"),
    )

    @model_validator(mode="after")
    def _simulated_agree(self) -> Self:
        if self.kinds is not None and (DeviceKind.SIMULATED in self.kinds) != bool(self.simulated):
            message = "Simulated belongs here exactly when `simulated` lists devices"
            refuse([(("kinds",), message)])
        return self

    @property
    def effective_kinds(self) -> tuple[DeviceKind, ...]:
        """The kinds that may serve, with the default filled in."""
        if self.kinds is not None:
            return self.kinds
        return (DeviceKind.SIMULATED,) if self.simulated else (DeviceKind.GPU, DeviceKind.CPU)


class EnsembleSpec(Schema):
    """What is to be served, and how."""

    members: Annotated[tuple[MemberSpec, ...], distinct("name")] = Field(
        min_length=1,
        max_length=MAX_MEMBERS,
        description="The models; each takes the inputs and puts out the outputs in the order given here.",
        json_schema_extra=keyed_list("name"),
    )
    inputs: Tensors = Field(
        min_length=1,
        max_length=MAX_TENSORS,
        description="What every member takes.",
        json_schema_extra=keyed_list("name"),
    )
    outputs: Tensors = Field(
        min_length=1,
        max_length=MAX_TENSORS,
        description="What every member puts out.",
        json_schema_extra=keyed_list("name"),
    )
    combination: Combination = Field(Combination(), description="How the members' predictions become one.")
    objective: Objective = Field(Objective(), description="What the plan is to be best at.")
    serving: Serving = Field(Serving(), description="Limits and habits of serving.")
    devices: DeviceChoice = Field(DeviceChoice(), description="Which devices may serve.")
    replicas: int = Field(
        1, ge=0, le=MAX_REPLICAS, description="In a cluster: whole copies, each with devices of its own."
    )
    mode: Mode = Field(Mode.SERVE, description="PlanOnly: the plan goes to the status, and nothing is created.")
    suspend: bool = Field(False, description="Stop serving and free the devices; the ensemble stays.")
    priority: int = Field(
        0,
        ge=-1_000_000_000,
        le=1_000_000_000,
        description="Who gets devices first when they are short: the higher, then the older.",
    )
    preemption: Preemption = Field(
        Preemption.NEVER, description="LowerPriority: devices of ensembles of lower priority may be taken."
    )
    rollout: Rollout = Field(Rollout(), description="How a change is carried out.")
    placement: Placement = Field(Placement(), description="Which nodes may serve, and what the pods run under.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse([*self._combination_faults(), *self._quorum_faults(), *self._device_faults(), *self._partition_faults()])
        return self

    def _combination_faults(self) -> list[tuple[Path, str]]:
        combined = [m for m in self.members if not m.shadow]
        if not combined:
            return [(("members",), "every member is a shadow; expected at least one that is combined")]
        if self.combination.rule in _WEIGHTED and not any(m.weight for m in combined):
            rule = self.combination.rule.value
            return [(("members",), f"all weights are 0; rule {rule} needs a positive one on a member that is combined")]
        return list(self.combination.contradictions(self.outputs))

    def _quorum_faults(self) -> list[tuple[Path, str]]:
        return list(self.serving.contradictions(self.combination.rule, sum(not m.shadow for m in self.members)))

    def _device_faults(self) -> list[tuple[Path, str]]:
        kinds = self.devices.effective_kinds
        names = ", ".join(kind.value for kind in kinds)
        return [
            (("members", i, "deviceKinds"), f"none of these may serve; `spec.devices` offers {names}")
            for i, member in enumerate(self.members)
            if not set(kinds) & set(member.device_kinds)
        ]

    def _partition_faults(self) -> list[tuple[Path, str]]:
        if all(tensor.fixed for tensor in self.inputs):
            return []
        message = "no member can be split whose inputs have variable dimensions; remove it, or fix the shapes"
        return [(("members", i, "partition"), message) for i, m in enumerate(self.members) if m.partition is not None]


class InferenceEnsemble(Schema):
    """An ensemble of models that is served as one."""

    api_version: Literal["ensembles.dev/v1alpha1"]
    kind: Literal["InferenceEnsemble"]
    metadata: EnsembleMetadata
    spec: EnsembleSpec
    status: EnsembleStatus | None = None
