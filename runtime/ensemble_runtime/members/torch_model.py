"""Members in torch's formats: torch.export (``.pt2``) and TorchScript."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_runtime.config import Datatype, Device, DeviceKind, Member, ModelFormat, Precision, TensorSpec
from ensemble_runtime.devices.binding import threads
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError
from ensemble_runtime.members.checks import failure, first_line, random_rows
from ensemble_runtime.members.model import Array, as_declared, count_mismatch
from ensemble_runtime.members.torch_archive import check_script
from ensemble_runtime.members.torch_graph import optimised, quiet, scripted

logger = logging.getLogger(__name__)

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class TorchModel:
    """A torch callable that takes and gives numpy arrays, without a copy on a CPU in FP32."""

    def __init__(
        self,
        compute: Callable[..., Any],
        names: Sequence[str] | None,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        precision: torch.dtype,
        device: torch.device,
    ) -> None:
        """Wrap a callable.

        Args:
            compute: Takes the inputs by position; answers a tensor, or a tuple, list or dictionary of them.
            names: Of a tuple's elements, where the model names them.
            inputs: The manifest's inputs.
            outputs: The manifest's outputs.
            precision: What floating-point inputs are cast to.
            device: Where the inputs go.
        """
        # A ScriptModule's call is its `forward`, behind some microseconds of looking for hooks that it has none of.
        self._compute = compute.forward if isinstance(compute, torch.jit.ScriptModule) else compute
        self._names = names
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self.precision = precision
        self._device = device
        floating = {spec.datatype for spec in inputs} & {Datatype.FP16, Datatype.FP32, Datatype.FP64}
        self._private_inputs = False
        self._inference = torch.inference_mode()
        self._as_is = device.type == "cpu" and precision is torch.float32 and floating <= {Datatype.FP32}

    def computing(self, compute: Callable[..., Any]) -> TorchModel:
        """The same model with another way to compute it."""
        model = TorchModel(compute, self._names, self._inputs, self._outputs, self.precision, self._device)
        model._private_inputs = self._private_inputs
        return model

    def protect_inputs(self) -> None:
        """Compute on copies from now on, if this model writes into its inputs: other members read the same rows."""
        random = np.random.default_rng(0)
        batch = [random_rows(spec, 3, 5, random) for spec in self._inputs]
        before = [values.copy() for values in batch]
        self.predict(batch)
        self._private_inputs = any(map(_differ, batch, before))

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`."""
        if self._private_inputs:
            inputs = [values.copy() for values in inputs]
        with self._inference:
            if self._as_is:
                answer = self._compute(*map(torch.from_numpy, inputs))
            else:
                answer = self._compute(*map(self._onto_device, inputs))
        if self._as_is and len(self._outputs) == 1 and isinstance(answer, torch.Tensor):
            return [as_declared(self._onto_host(answer), self._outputs[0])]  # most members: nothing to look up
        return [
            as_declared(self._onto_host(tensor), spec)
            for tensor, spec in zip(_ordered(answer, self._names, self._outputs), self._outputs, strict=True)
        ]

    def _onto_device(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self._device, self.precision if tensor.is_floating_point() else tensor.dtype)

    def _onto_host(self, tensor: torch.Tensor) -> Array:
        if tensor.dtype is torch.bfloat16:  # numpy has none
            tensor = tensor.float()
        array: Array = tensor.cpu().numpy()
        return array


def load_torch(
    member: Member, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: Device
) -> TorchModel:
    """Load a torch.export or TorchScript archive; see `loading.load`."""
    torch.set_num_threads(threads(device))
    target = _target(device)
    precision = _DTYPES[member.precision]
    try:
        if member.model.format is ModelFormat.TORCH_EXPORT:
            from ensemble_runtime.members.torch_export import load_export  # here: it takes seconds to import

            plain, names = load_export(path, target, precision, member.model.allow_pickle)
        else:
            check_script(path)
            plain, names = _load_script(path, target, precision), None
    except ModelInvalidError:
        raise
    except Exception as error:  # torch raises RuntimeError, AssertionError, KeyError and more on damaged archives
        raise failure(error, f"cannot be loaded by torch {torch.__version__}: {first_line(error)}") from error
    reference = TorchModel(plain, names, inputs, outputs, precision, target)
    with contextlib.suppress(Exception):  # one that cannot be run at all is for the warm-up to report
        reference.protect_inputs()
    return (_faster(plain, reference, inputs) if target.type == "cpu" else None) or reference


def _differ(found: Array, expected: Array) -> bool:
    return not np.array_equal(found, expected)


def _load_script(path: Path, target: torch.device, precision: torch.dtype) -> Any:
    with quiet():
        module = torch.jit.load(path, map_location=target)
    return module.eval().to(precision)


def _target(device: Device) -> torch.device:
    if device.kind is not DeviceKind.GPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(
            f"{device.name}: torch {torch.__version__} finds no CUDA device; install a build that fits the driver"
        )
    return torch.device("cuda", 0)  # the process is bound to this one device


def _faster(plain: Any, reference: TorchModel, inputs: Sequence[TensorSpec]) -> TorchModel | None:
    """The same model compiled for a CPU, if that succeeds and gives the same answers."""
    try:
        module = scripted(plain) if isinstance(plain, torch.fx.GraphModule) else plain
        with torch.inference_mode():
            fast = reference.computing(optimised(module, reference.precision))
        return fast if _agree(reference, fast, inputs) else None
    except Exception as error:
        # Not every model can be compiled; one that cannot be run at all is for the warm-up to report.
        logger.info("member runs uncompiled: %s", first_line(error))
        return None


def _agree(reference: TorchModel, fast: TorchModel, inputs: Sequence[TensorSpec]) -> bool:
    """Whether two models answer alike, at several sizes, and again once the compiler has specialised."""
    random = np.random.default_rng(0)
    tolerance = 1e-3 if reference.precision is torch.float32 else 5e-2
    for rows, length in ((1, 8), (3, 5), (3, 5), (2, 8)):
        batch = [random_rows(spec, rows, length, random) for spec in inputs]
        for expected, found in zip(reference.predict(batch), fast.predict(batch), strict=True):
            scale = float(np.abs(expected).max(initial=0)) if expected.dtype.kind == "f" else 0.0
            if not np.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
                logger.info("member runs uncompiled: compiled, it answers differently")
                return False
    return True


def _ordered(answer: Any, names: Sequence[str] | None, outputs: Sequence[TensorSpec]) -> Sequence[torch.Tensor]:
    """The answer's tensors in the manifest's order: by name if all names are there, else by position."""
    if isinstance(answer, torch.Tensor):
        tensors: Sequence[Any] = (answer,)
    elif isinstance(answer, Mapping):
        names, tensors = list(answer), list(answer.values())
    elif isinstance(answer, tuple | list):
        tensors = answer
    else:
        raise ModelInvalidError(
            f"answers {type(answer).__name__}, expected a tensor, or a tuple, list or dictionary of them"
        )
    if names is not None and set(names) >= {spec.name for spec in outputs}:
        tensors = [tensors[names.index(spec.name)] for spec in outputs]
    if len(tensors) != len(outputs):
        raise count_mismatch("outputs", len(tensors), outputs)
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise ModelInvalidError(f"answers {type(tensor).__name__} inside its outputs, expected tensors alone")
    return tensors
