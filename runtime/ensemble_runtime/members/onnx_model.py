"""Members in ONNX, through ONNX Runtime; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ensemble_runtime.config import Device, DeviceKind, Member, Precision, TensorSpec
from ensemble_runtime.devices.binding import threads
from ensemble_runtime.errors import DeviceUnavailableError, ModelInvalidError
from ensemble_runtime.members.checks import failure, first_line, lacks_memory
from ensemble_runtime.members.model import Array, as_declared, count_mismatch, dtype_of

_NUMPY_TYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class OnnxModel:
    """An ONNX Runtime session that takes and gives numpy arrays."""

    def __init__(
        self,
        member: Member,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device,
        *,
        spins: bool = False,
    ) -> None:
        """Open a session; see `loading.load`. With `spins` its threads wait for each other without sleeping."""
        self._session = _session(path, device, spins=spins)
        self._outputs = outputs
        found_inputs = _matched("inputs", self._session.get_inputs(), inputs)
        found_outputs = _matched("outputs", self._session.get_outputs(), outputs)
        _check_precision(member.precision, [*found_inputs, *found_outputs])
        for found, spec in zip(found_inputs, inputs, strict=True):
            _check_shape(found, spec)
        # In the manifest's order.
        self.input_names = [found.name for found in found_inputs]
        self.output_names = [found.name for found in found_outputs]
        self._input_types = [_input_type(found, spec) for found, spec in zip(found_inputs, inputs, strict=True)]
        self._casts = any(dtype_of(spec) != wanted for spec, wanted in zip(inputs, self._input_types, strict=True))

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Model.predict`. IO binding and OrtValues were measured and are slower than a plain run on a CPU."""
        if self._casts:
            inputs = [x.astype(wanted, copy=False) for x, wanted in zip(inputs, self._input_types, strict=True)]
        answers = self._session.run(self.output_names, dict(zip(self.input_names, inputs, strict=True)))
        return [as_declared(answer, spec) for answer, spec in zip(answers, self._outputs, strict=True)]


def options(device: Device, *, spins: bool = False) -> Any:
    """How a session computes on a device."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads(device)
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    chosen.log_severity_level = 3
    # Threads that wait must not burn the cores of the cells beside them, where there may be any.
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    return chosen


def providers(device: Device, stream: int | None = None) -> list[Any]:
    """What computes on a device, in the words of ONNX Runtime; on a GPU in a stream of its own, unless one is given.

    Raises:
        DeviceUnavailableError: a GPU, and this ONNX Runtime has no CUDA.
    """
    if device.kind is not DeviceKind.GPU:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceUnavailableError(f"{device.name}: this ONNX Runtime has no CUDA; install onnxruntime-gpu instead")
    # CUDA and cuDNN may be there as packages alone, where the loader does not look by itself.
    onnxruntime.preload_dlls()
    # It warns with each session that CUDA is not there as a plugin, which it need not be.
    onnxruntime.set_default_logger_severity(3)
    cuda = {
        "device_id": 0,  # the process is bound to this one device
        "gpu_mem_limit": device.memory_bytes,
        "arena_extend_strategy": "kSameAsRequested",
        # The exhaustive default searches anew for every new batch size, in the middle of serving.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if stream is not None:
        cuda["user_compute_stream"] = str(stream)
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def opened(model: bytes | str, device: Device, chosen: Any, stream: int | None = None) -> Any:
    """A session that computes on a device; where CUDA does not start, ONNX Runtime would go on without it.

    Args:
        model: Serialised, or its path.
        device: Where.
        chosen: Options of the session.
        stream: The CUDA stream in which it computes.

    Raises:
        DeviceUnavailableError: a GPU, and this ONNX Runtime has no CUDA, or cannot start it.
        Exception: whatever ONNX Runtime raises.
    """
    lacking = f"{device.name}: ONNX Runtime cannot start CUDA here; check that its CUDA and cuDNN fit"
    try:
        session = onnxruntime.InferenceSession(model, chosen, providers=providers(device, stream), enable_fallback=0)
    except RuntimeError as error:  # of the provider; those of the model have other classes
        if device.kind is DeviceKind.GPU and not lacks_memory(error):
            raise DeviceUnavailableError(f"{lacking}: {first_line(error)}") from error
        raise
    if device.kind is DeviceKind.GPU and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceUnavailableError(lacking)
    return session


def _session(path: Path, device: Device, *, spins: bool) -> Any:
    try:
        # Opened by descriptor, a model has no folder: weights in side files, which no digest covers, are not found.
        with path.open("rb") as file:
            return opened(f"/proc/self/fd/{file.fileno()}", device, options(device, spins=spins))
    except DeviceUnavailableError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        if "xternal data" in str(error):
            raise ModelInvalidError(
                "keeps weights in side files; expected one file, saved with save_as_external_data=False"
            ) from error
        raise failure(
            error, f"cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}"
        ) from error


def _matched(what: str, found: Sequence[Any], specs: Sequence[TensorSpec]) -> list[Any]:
    """The model's tensors in the manifest's order: by name if all names match, else by position.

    Outputs that the manifest does not name are not computed.
    """
    by_name = {tensor.name: tensor for tensor in found}
    names = [spec.name for spec in specs]
    if set(names) <= by_name.keys() and (what == "outputs" or len(names) == len(found)):
        found = [by_name[name] for name in names]
    elif len(found) != len(specs):
        raise count_mismatch(what, len(found), specs)
    return list(found)


def _check_shape(tensor: Any, spec: TensorSpec) -> None:
    """Compare an input with the manifest's; outputs are checked when they are real, at warm-up."""
    shape = tensor.shape
    if shape and isinstance(shape[0], int):
        raise ModelInvalidError(
            f"input '{tensor.name}' has a fixed batch of {shape[0]}; export it with a variable first dimension"
        )
    agree = len(shape) == len(spec.shape) + 1 and all(
        not isinstance(found, int) or found == dim for found, dim in zip(shape[1:], spec.shape, strict=True)
    )
    if not agree:
        dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in shape[1:])
        raise ModelInvalidError(
            f"input '{tensor.name}' has shape [{dims}], the manifest's '{spec.name}' has {list(spec.shape)} "
            "(both without the batch axis)"
        )


def _check_precision(precision: Precision, tensors: Sequence[Any]) -> None:
    """ONNX Runtime computes in the types that are written into the graph; it does not convert."""
    types = {tensor.type for tensor in tensors}
    written = Precision.FP32
    if "tensor(bfloat16)" in types:
        written = Precision.BF16
    elif "tensor(float16)" in types:
        written = Precision.FP16
    if precision is Precision.BF16 or written is Precision.BF16:
        raise ModelInvalidError("ONNX members cannot compute in BF16; use FP32 or FP16, or a torch format")
    if precision is not written:
        raise ModelInvalidError(
            f"precision {precision.value} is asked for, but the graph takes and gives {written.value}; "
            f"set `precision: {written.value}`, or convert the file (onnxconverter_common.float16 makes FP16)"
        )


def _input_type(tensor: Any, spec: TensorSpec) -> np.dtype[Any]:
    name = _NUMPY_TYPES.get(tensor.type)
    if name is None:
        raise ModelInvalidError(f"input '{tensor.name}' takes {tensor.type}; expected a numeric tensor")
    if not np.can_cast(dtype_of(spec), name, "same_kind"):
        raise ModelInvalidError(
            f"input '{tensor.name}' takes {name}, the manifest's '{spec.name}' is {spec.datatype.value}"
        )
    return np.dtype(name)
