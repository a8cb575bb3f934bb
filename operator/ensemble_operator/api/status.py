"""What the operator reports of an `InferenceEnsemble`: output only, never an input to planning."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from ensemble_operator.api.schema import keyed_list
from ensemble_runtime.config import MAX_MEMBERS, Name, Schema

Text = Annotated[str, StringConstraints(max_length=1024)]
LongText = Annotated[str, StringConstraints(max_length=32768)]


class ConditionType(StrEnum):
    """The aspects that conditions speak of, in the order in which an ensemble comes to be."""

    ACCEPTED = "Accepted"
    PROFILED = "Profiled"
    PLANNED = "Planned"
    PROGRESSING = "Progressing"
    READY = "Ready"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"


class Condition(Schema):
    """One aspect of the ensemble's state, in the form of Kubernetes' metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: Text
    message: LongText
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int | None = Field(None, ge=0)


class PlacedMember(Schema):
    """A member on a device."""

    member: Name
    batch_size: int = Field(ge=1)


class MatrixRow(Schema):
    """A device that serves, and the members on it."""

    node: Text
    device: Text
    type: Text
    uuid: Text | None = Field(None, description="As the pod reports it; absent until it does, and on CPU devices.")
    source: Text = Field(description="What told of the device: Labels, ResourceSlices, Static or a pod that holds it.")
    cells: tuple[PlacedMember, ...] = Field((), max_length=MAX_MEMBERS)


class LastFailure(Schema):
    """How a container of the ensemble ended last."""

    pod: Text
    container: Text
    exit_code: int
    message: LongText


class SeenInventory(Schema):
    """What the plan could choose from."""

    devices: int = Field(0, ge=0, description="Devices of kinds that may serve.")
    free: int = Field(0, ge=0, description="Those that no ensemble holds.")
    sources: tuple[Text, ...] = Field((), max_length=8, description="What told of them.")


class EnsembleStatus(Schema):
    """What was seen and planned last. Fields that a newer operator wrote are ignored."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int | None = Field(None, ge=0, description="The spec that this status speaks of.")
    conditions: tuple[Condition, ...] = Field((), max_length=32, json_schema_extra=keyed_list("type"))
    replicas: int | None = Field(None, ge=0, description="Whole copies that exist.")
    ready_replicas: int | None = Field(None, ge=0, description="Whole copies that serve.")
    selector: str | None = Field(None, max_length=2048, description="Labels of the pods, for autoscalers.")
    members: str | None = Field(None, max_length=64, description="Members that are ready, of all, e.g. 3/4.")
    devices: int | None = Field(None, ge=0, description="Devices that the plan uses.")
    nodes: int | None = Field(None, ge=0, description="Nodes that the plan uses.")
    rate: float | None = Field(None, ge=0, description="Rows per second that the plan promises.")
    observed_rate: float | None = Field(None, ge=0, description="Rows per second that were served last.")
    plan: str | None = Field(None, max_length=64, description="Hash of the plan that is being served.")
    bottleneck: Text | None = Field(None, description="What keeps the rate from rising.")
    reason: Text | None = Field(None, description="Why the first condition is not as wished; absent when all are.")
    matrix: tuple[MatrixRow, ...] = Field((), max_length=4096, description="Which device serves which members.")
    endpoints: tuple[Text, ...] = Field((), max_length=8, description="Where the ensemble answers.")
    last_failure: LastFailure | None = Field(None, description="How a container ended last.")
    preempted_by: Text | None = Field(None, description="Who has taken its devices: NAMESPACE/NAME of an ensemble.")
    inventory: SeenInventory | None = Field(None, description="What the plan could choose from.")
