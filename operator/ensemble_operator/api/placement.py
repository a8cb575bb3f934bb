"""Where the pods of an ensemble may go, and under what they run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from ensemble_operator.api.contradiction import distinct, refuse
from ensemble_operator.api.schema import SET
from ensemble_runtime.config import ObjectName, Schema

MAX_SELECTORS = 32
MAX_TOLERATIONS = 32
MAX_PULL_SECRETS = 16

LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]


class DevicePinning(StrEnum):
    """Whether a pod may get another device of the planned type than the planned one."""

    PREFER = "Prefer"
    STRICT = "Strict"


class TolerationOperator(StrEnum):
    """How a toleration is compared with a taint."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Schema):
    """A taint that the pods put up with, in the words of Kubernetes."""

    key: LabelKey | None = Field(None, description="Key of the taint; without it every key.")
    operator: TolerationOperator = Field(
        TolerationOperator.EQUAL, description="Equal: key and value are the taint's. Exists: any value will do."
    )
    value: LabelValue | None = Field(None, description="Value of the taint, for operator Equal.")
    effect: TaintEffect | None = Field(None, description="Effect of the taint; without it every effect.")

    @model_validator(mode="after")
    def _operands_fit(self) -> Self:
        if self.operator is TolerationOperator.EXISTS:
            refuse([(("value",), "operator Exists takes no value")] if self.value is not None else [])
        else:
            refuse([(("key",), "missing; operator Equal needs it")] if self.key is None else [])
        return self


class Placement(Schema):
    """Which nodes may serve, and what the pods run under."""

    node_selector: dict[LabelKey, LabelValue] = Field(
        {}, max_length=MAX_SELECTORS, description="Labels that a node must have."
    )
    tolerations: tuple[Toleration, ...] = Field(
        (), max_length=MAX_TOLERATIONS, description="Taints that the pods put up with, besides nvidia.com/gpu."
    )
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods, e.g. nvidia.")
    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount of the pods; its token is not mounted."
    )
    image_pull_secrets: Annotated[tuple[ObjectName, ...], distinct()] = Field(
        (), max_length=MAX_PULL_SECRETS, description="Secrets that the images are pulled with.", json_schema_extra=SET
    )
    device_pinning: DevicePinning = Field(
        DevicePinning.PREFER,
        description=(
            "Strict: GPUs serve only where they can be asked for one by one (ResourceSlices). "
            "Prefer: elsewhere the kubelet chooses among a node's GPUs, which are of one type."
        ),
    )
