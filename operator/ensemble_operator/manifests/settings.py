"""What the builders must be told that is not in the ensemble: how this installation runs pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.slices import DRIVERS, DriverWords
from ensemble_operator.manifests.models import CACHE
from ensemble_runtime.config import DeviceKind, ModelFormat


@dataclass(frozen=True, slots=True)
class PodSettings:
    """The installation's part of every pod."""

    image_onnx: str
    """For ONNX members on CPUs: no torch, no CUDA."""
    image_full: str
    """For everything else."""
    pull_policy: str = "IfNotPresent"
    service_account: str | None = None
    """Where the ensemble names none; None: the namespace's default."""
    pull_secrets: tuple[str, ...] = ()
    model_cache_claim: str | None = None
    """PersistentVolumeClaim of the model cache, in the ensemble's namespace; None: a volume that ends with the pod."""
    model_cache_mib: int = 0
    """Most that fetched models may take in it; 0: no limit."""
    drivers: Mapping[str, DriverWords] = field(default_factory=lambda: DRIVERS)
    """Those of the GPUs that ResourceSlices tell of, by their names."""
    log_level: str = "INFO"

    @property
    def cache_options(self) -> list[str]:
        """How `ensemble-runtime fetch` is told of the model cache."""
        return ["--cache", CACHE, *(["--cache-mib", str(self.model_cache_mib)] if self.model_cache_mib else [])]

    def image(self, ensemble: InferenceEnsemble, devices: Sequence[Device]) -> str:
        """The smallest image that can serve the members on these devices."""
        models = [member.model for member in ensemble.spec.members]
        stacking = ensemble.spec.combination.model
        formats = {model.format for model in (*models, *([stacking] if stacking else []))}
        needs_torch = formats != {ModelFormat.ONNX}
        needs_cuda = any(device.kind is DeviceKind.GPU for device in devices)
        return self.image_full if needs_torch or needs_cuda else self.image_onnx
