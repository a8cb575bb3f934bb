"""What the operator reports of an `InferenceEnsemble`: output only, never an input to planning."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ensemble_operator.api.schema import keyed_list
from ensemble_runtime.config import Schema


class Condition(Schema):
    """One aspect of the ensemble's state, in the form of Kubernetes' metav1.Condition."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(max_length=1024)
    message: str = Field(max_length=32768)
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int | None = Field(None, ge=0)


class EnsembleStatus(Schema):
    """What was seen and planned last. Fields that a newer operator wrote are ignored."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int | None = Field(None, ge=0, description="The spec that this status speaks of.")
    conditions: tuple[Condition, ...] = Field((), max_length=32, json_schema_extra=keyed_list("type"))
    members: str | None = Field(None, description="Members that are ready, of all, e.g. 3/4.")
    devices: int | None = Field(None, ge=0, description="Devices that the plan uses.")
    nodes: int | None = Field(None, ge=0, description="Nodes that the plan uses.")
    rate: float | None = Field(None, ge=0, description="Rows per second that the plan promises.")
    plan: str | None = Field(None, description="Hash of the plan that is being served.")
    bottleneck: str | None = Field(None, description="What keeps the rate from rising.")
