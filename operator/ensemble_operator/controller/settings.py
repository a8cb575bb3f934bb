"""The operator's settings: environment variables ENSEMBLES_*, each with what it means; a wrong one ends the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, ValidationError

from ensemble_operator.inventory.slices import DriverWords
from ensemble_runtime.errors import EnsembleError

PREFIX = "ENSEMBLES_"

Image = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class SettingsError(EnsembleError):
    """A setting is missing or wrong; the message names the environment variable."""

    exit_code = 78


class Settings(BaseModel):
    """All that the operator can be told. `namespace` becomes ENSEMBLES_NAMESPACE, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = Field("", description="The only namespace to look at; empty: the whole cluster.")
    runtime_image_onnx: Image = Field(description="Image of the runtime for ensembles whose members are all ONNX.")
    runtime_image_full: Image = Field(description="Image of the runtime with torch, for all other ensembles.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When nodes pull the runtime's image."
    )
    debounce_seconds: float = Field(
        0.1, ge=0, le=60, description="How long to gather changes before a cycle looks at them."
    )
    resync_seconds: float = Field(
        600, ge=5, le=86_400, description="How often everything is listed again, in case a watch went deaf."
    )
    plan_seconds: float = Field(
        20, gt=0, le=600, description="Most time to plan in one cycle; then the best plans so far count."
    )
    max_pod_changes: int = Field(
        100, ge=1, le=100_000, description="Most pods that one cycle may delete; the rest waits for the next."
    )
    static_inventory: str = Field(
        "", description="Name of a ConfigMap that lists the devices, for installs that may not read nodes."
    )
    static_namespace: str = Field("", description="Namespace of that ConfigMap; empty: that of `namespace`.")
    model_cache_claim: str = Field(
        "", description="PersistentVolumeClaim of the model cache, in each ensemble's namespace; empty: one a pod."
    )
    model_cache_mib: int = Field(0, ge=0, le=2**30, description="Most that fetched models take; 0: no limit.")
    gpu_reserve_mib: int = Field(
        600, ge=0, le=2**20, description="Memory of each GPU that no member gets: driver and CUDA context."
    )
    dra_drivers: Json[dict[str, DriverWords]] = Field(
        {},
        description=(
            "DRA drivers that publish GPUs besides gpu.nvidia.com, in JSON: what each calls the attributes uuid, "
            'product, kind and profile and the capacity memory, e.g. {"gpu.example.com": {"product": "model"}}.'
        ),
    )
    liveness_port: Port = Field(8080, description="Port of /healthz; 0: any free one.")
    metrics_port: Port = Field(8081, description="Port of /metrics; 0: any free one.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least that is logged.")
    log_format: Literal["json", "text"] = Field("json", description="One JSON object a line, or plain text.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; unset and empty variables have their defaults.

        Raises:
            SettingsError: One line for each variable that is missing or wrong.
        """
        given = {
            name: value for name in cls.model_fields if (value := environment.get(variable(name), "").strip()) != ""
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            lines = [f"{variable(str(e['loc'][0]))}: {_reason(e['type'], e['msg'])}" for e in error.errors()]
            raise SettingsError("\n".join(lines)) from None


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _reason(kind: str, message: str) -> str:
    return "missing" if kind == "missing" else message.lower()
