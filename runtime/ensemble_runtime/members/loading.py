"""Turns a member's model file into a `Model` on this process's device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ensemble_runtime.config import Device, Member, ModelFormat, TensorSpec
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.model import Model

__all__ = ["Model", "libraries", "load"]

_LIBRARIES = {
    ModelFormat.ONNX: ("ensemble_runtime.members.onnx_model",),
    ModelFormat.TORCH_SCRIPT: ("ensemble_runtime.members.torch_model",),
    # The last is what torch.export.load imports on its first call.
    ModelFormat.TORCH_EXPORT: (
        "ensemble_runtime.members.torch_model",
        "ensemble_runtime.members.torch_export",
        "torch.export._trace",
    ),
}


def libraries(formats: Iterable[ModelFormat]) -> tuple[str, ...]:
    """Modules to import ahead, in a process that forks others: those that loading these formats would import."""
    return tuple(dict.fromkeys(module for model_format in sorted(formats) for module in _LIBRARIES[model_format]))


def load(
    member: Member, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: Device
) -> Model:
    """Load a model onto the device that this process is bound to (`devices.binding.bind` comes first).

    Simulated devices load nothing: see `members.simulated_model`.

    Args:
        member: Its format and precision, and whether it may be unpickled.
        path: The file, its digest already checked.
        inputs: The manifest's inputs. ONNX models take them by name if all names match, else by position; the
            torch formats by position.
        outputs: The manifest's outputs, matched likewise; a torch model that answers a dictionary is matched by name.
        device: A GPU or a CPU core set.

    Raises:
        ModelInvalidError: cannot be parsed, needs pickle without leave, or has not the manifest's inputs and outputs.
        OutOfMemoryError: has no room on the device.
    """
    try:
        # Imported here, so that a runtime whose members are all ONNX never imports torch, and the other way round.
        match member.model.format:
            case ModelFormat.ONNX:
                from ensemble_runtime.members.onnx_model import OnnxModel

                return OnnxModel(member, path, inputs, outputs, device)
            case ModelFormat.TORCH_EXPORT | ModelFormat.TORCH_SCRIPT:
                from ensemble_runtime.members.torch_model import load_torch

                return load_torch(member, path, inputs, outputs, device)
    except (ModelInvalidError, OutOfMemoryError) as error:
        raise type(error)(f"member '{member.name}': {error}") from error
    except ImportError as error:
        raise ModelInvalidError(
            f"member '{member.name}': {member.model.format} needs a package that is not installed: {error.name}"
        ) from error
