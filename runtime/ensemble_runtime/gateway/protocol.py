"""The Open Inference Protocol's inference request: JSON and sizes in, a checked and frozen request out.

Follows the Open Inference Protocol v2 (inference_rest) with Triton's binary tensor data extension and its parameters
`priority` and `timeout` (microseconds). Ours besides: `min_members` and `deadline` (milliseconds), `return_members`,
`disagreement`; and the outputs `<output>@<member>` and `disagreement.<signal>`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import orjson
from numpy.typing import NDArray

from ensemble_runtime.config import Datatype, Rule, RuntimeConfig, TensorSpec
from ensemble_runtime.gateway.refusal import invalid
from ensemble_runtime.gateway.tensors import from_json
from ensemble_runtime.pipeline.port import Options

SIGNALS = ("variance", "predictive_entropy", "mutual_information", "vote_margin")
"""What `Lease.disagreement` tells per row."""

_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """One tensor of the answer: a combined output, a member's own, or a signal of disagreement."""

    name: str
    binary: bool
    index: int = 0
    """Which of the ensemble's outputs, if it is not a signal."""
    member: str | None = None
    signal: str | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One checked request; inputs are numbered as in the configuration."""

    id: str | None
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    """By input, without the batch axis."""
    arrays: tuple[tuple[int, NDArray[Any]], ...]
    """Inputs that came as JSON."""
    binary: tuple[int, ...]
    """Inputs whose bytes follow the JSON, in that order."""
    binary_bytes: int
    """How many bytes follow the JSON."""
    options: Options
    outputs: tuple[OutputChoice, ...]


class RequestParser:
    """Knows the ensemble's tensors, members and limits."""

    def __init__(self, config: RuntimeConfig, max_rows: int) -> None:
        self._inputs = {spec.name: i for i, spec in enumerate(config.inputs)}
        self._specs = config.inputs
        self._outputs = {spec.name: i for i, spec in enumerate(config.outputs)}
        self._members = tuple(member.name for member in config.members if not member.shadow)
        self._quorum = config.serving.quorum
        self._stacking = config.combination.rule is Rule.STACKING
        self._timeout = config.serving.timeout_ms / 1e3
        self._max_rows = max_rows

    def parse(self, raw: bytes | bytearray | memoryview) -> InferRequest:
        """Check the JSON of a request; `data` is converted, binary inputs are only measured.

        Raises:
            RefusedError: 400 with the field, what was expected and what to do.
        """
        document = _object(_json(raw), "the request")
        parameters = _parameters(document, "parameters")
        request_id = document.get("id")
        if request_id is not None and not isinstance(request_id, str):
            raise invalid(f"id: expected a string, got {_kind(request_id)}")
        request = self._parse_inputs(document)
        outputs = self._parse_outputs(document, parameters)
        options = self._parse_options(parameters)
        if any(choice.signal for choice in outputs):
            options = replace(options, disagreement=True)
        if any(choice.member for choice in outputs):
            options = replace(options, individually=True)
        return replace(request, id=request_id, options=options, outputs=outputs)

    def parse_raw(self, size: int) -> InferRequest:
        """A raw request: the body is the one input of one row, without JSON; all outputs are binary.

        Raises:
            RefusedError: 400 if the ensemble or the size does not allow it.
        """
        if len(self._specs) != 1:
            raise invalid(
                f"Inference-Header-Content-Length: 0 needs a model with one input, this has {len(self._specs)}"
            )
        spec = self._specs[0]
        known = spec.datatype.itemsize * prod(dim for dim in spec.shape if dim != -1)
        variable = spec.shape.count(-1)
        length, rest = divmod(size, known)
        if variable > 1 or rest or (variable == 0 and length != 1) or not 1 <= length <= spec.max_length:
            raise invalid(
                f"the body has {size} bytes; expected one row of input '{spec.name}', shape {list(spec.shape)} "
                f"{spec.datatype}, with at most one variable dimension of 1 to {spec.max_length}"
            )
        shape = tuple(length if dim == -1 else dim for dim in spec.shape)
        outputs = tuple(OutputChoice(name, True, i) for name, i in self._outputs.items())
        return InferRequest(None, 1, (shape,), (), (0,), size, Options(), outputs)

    def _parse_inputs(self, document: dict[str, Any]) -> InferRequest:
        tensors = document.get("inputs")
        if not isinstance(tensors, list):
            raise invalid(f"inputs: expected an array of tensors, got {_kind(tensors)}")
        rows = 0
        shapes: dict[int, tuple[int, ...]] = {}
        arrays: list[tuple[int, NDArray[Any]]] = []
        binary: list[int] = []
        binary_bytes = 0
        for position, item in enumerate(tensors):
            where = f"inputs[{position}]"
            tensor = _object(item, where)
            index = _known(tensor.get("name"), self._inputs, f"{where}.name")
            if index in shapes:
                raise invalid(f"{where}.name: input '{tensor['name']}' is given twice")
            spec = self._specs[index]
            shape = self._shape(tensor, spec, where)
            if shapes and shape[0] != rows:
                raise invalid(f"{where}.shape: expected {rows} rows as in the inputs before, got {shape[0]}")
            rows, shapes[index] = shape[0], shape[1:]
            if (size := _parameters(tensor, f"{where}.parameters").get("binary_data_size")) is not None:
                binary.append(index)
                binary_bytes += _binary_size(size, spec, shape, tensor, where)
            else:
                arrays.append((index, _array(tensor, spec.datatype, prod(shape), where)))
        if missing := [name for name, index in self._inputs.items() if index not in shapes]:
            raise invalid(f"inputs: missing {', '.join(missing)}")
        ordered = tuple(shapes[i] for i in range(len(self._specs)))
        return InferRequest(None, rows, ordered, tuple(arrays), tuple(binary), binary_bytes, Options(), ())

    def _shape(self, tensor: dict[str, Any], spec: TensorSpec, where: str) -> tuple[int, ...]:
        if (datatype := tensor.get("datatype")) != spec.datatype.value:
            raise invalid(f"{where}.datatype: expected {spec.datatype} for input '{spec.name}', got {_show(datatype)}")
        shape = tensor.get("shape")
        if not isinstance(shape, list) or any(type(dim) is not int or dim < 1 for dim in shape):
            raise invalid(f"{where}.shape: expected an array of positive integers, the batch first, got {_show(shape)}")
        if len(shape) != len(spec.shape) + 1 or any(
            got > spec.max_length if dim == -1 else got != dim for got, dim in zip(shape[1:], spec.shape, strict=True)
        ):
            expected = ", ".join(["batch", *(f"1..{spec.max_length}" if dim == -1 else str(dim) for dim in spec.shape)])
            raise invalid(f"{where}.shape: expected [{expected}] for input '{spec.name}', got {_show(shape)}")
        if shape[0] > self._max_rows:
            raise invalid(
                f"{where}.shape: at most {self._max_rows} rows a request, got {shape[0]}; send several requests"
            )
        return tuple(shape)

    def _parse_outputs(self, document: dict[str, Any], parameters: dict[str, Any]) -> tuple[OutputChoice, ...]:
        all_binary = _flag(parameters, "binary_data_output")
        asked = document.get("outputs")
        if asked is not None and not isinstance(asked, list):
            raise invalid(f"outputs: expected an array of outputs, got {_kind(asked)}")
        if asked:
            choices = [self._output(item, all_binary, f"outputs[{i}]") for i, item in enumerate(asked)]
        else:
            choices = [OutputChoice(name, all_binary, i) for name, i in self._outputs.items()]
        if _flag(parameters, "return_members"):
            combined = [choice for choice in choices if choice.member is None and choice.signal is None]
            choices += [
                OutputChoice(f"{choice.name}@{member}", choice.binary, choice.index, member)
                for choice in combined
                for member in self._members
            ]
        if _flag(parameters, "disagreement"):
            choices += [OutputChoice(f"disagreement.{signal}", all_binary, signal=signal) for signal in SIGNALS]
        return tuple({choice.name: choice for choice in choices}.values())

    def _output(self, item: object, all_binary: bool, where: str) -> OutputChoice:
        document = _object(item, where)
        parameters = _parameters(document, f"{where}.parameters")
        for unsupported in ("classification", "shared_memory_region"):
            if unsupported in parameters:
                raise invalid(f"{where}.parameters.{unsupported}: not supported here; leave it out")
        binary = _flag(parameters, "binary_data", all_binary, f"{where}.parameters")
        name = document.get("name")
        if not isinstance(name, str):
            raise invalid(f"{where}.name: expected the name of an output, got {_show(name)}")
        if name in self._outputs:
            return OutputChoice(name, binary, self._outputs[name])
        output, _, member = name.rpartition("@")
        if output in self._outputs and member in self._members:
            return OutputChoice(name, binary, self._outputs[output], member)
        prefix, _, signal = name.partition(".")
        if prefix == "disagreement" and signal in SIGNALS:
            return OutputChoice(name, binary, signal=signal)
        known = ", ".join(self._outputs)
        raise invalid(
            f"{where}.name: no output is named {_show(name)}; expected one of {known}, "
            f"<output>@<member> with a member of {', '.join(self._members)}, or disagreement.<{'|'.join(SIGNALS)}>"
        )

    def _parse_options(self, parameters: dict[str, Any]) -> Options:
        timeout = _number(parameters, "timeout", "microseconds", _HOUR_US)
        deadline = _number(parameters, "deadline", "milliseconds", _HOUR_US / 1e3)
        members = _integer(parameters, "min_members", 1, len(self._members))
        if self._stacking and (members or deadline):
            raise invalid("parameters: rule Stacking needs every member; leave out min_members and deadline")
        if self._quorum is None and (members is None) != (deadline is None):
            lacking = "deadline (milliseconds)" if deadline is None else "min_members"
            raise invalid(f"parameters: a quorum needs min_members and deadline; add {lacking}")
        return Options(
            priority=_integer(parameters, "priority", 0, 2**31 - 1) or 0,
            # A client may ask for less than the server's limit, not for more.
            timeout=None if timeout is None else min(timeout / 1e6, self._timeout),
            min_members=members,
            deadline=None if deadline is None else deadline / 1e3,
            disagreement=_flag(parameters, "disagreement"),
        )


def _json(raw: bytes | bytearray | memoryview) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the request is not valid JSON: {error}") from None


def _array(tensor: dict[str, Any], datatype: Datatype, count: int, where: str) -> NDArray[Any]:
    if "data" not in tensor:
        raise invalid(f"{where}: expected `data`, or `parameters.binary_data_size` with the bytes after the JSON")
    try:
        return from_json(tensor["data"], datatype, count)
    except ValueError as error:
        raise invalid(f"{where}.data: {error}") from None


def _binary_size(size: object, spec: TensorSpec, shape: tuple[int, ...], tensor: dict[str, Any], where: str) -> int:
    expected = prod(shape) * spec.datatype.itemsize
    if type(size) is not int or size != expected:
        raise invalid(
            f"{where}.parameters.binary_data_size: expected {expected} bytes for shape {list(shape)} {spec.datatype}, "
            f"got {_show(size)}"
        )
    if "data" in tensor:
        raise invalid(f"{where}: expected either `data` or `parameters.binary_data_size`, got both")
    return expected


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{where}: expected a JSON object, got {_kind(value)}")
    return value


def _parameters(document: dict[str, Any], where: str) -> dict[str, Any]:
    value = document.get("parameters")
    return {} if value is None else _object(value, where)


def _known(name: object, names: dict[str, int], where: str) -> int:
    if not isinstance(name, str) or name not in names:
        raise invalid(f"{where}: expected one of {', '.join(names)}, got {_show(name)}")
    return names[name]


def _flag(parameters: dict[str, Any], name: str, default: bool = False, where: str = "parameters") -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{where}.{name}: expected true or false, got {_show(value)}")
    return value


def _integer(parameters: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise invalid(f"parameters.{name}: expected an integer from {least} to {most}, got {_show(value)}")
    return value


def _number(parameters: dict[str, Any], name: str, unit: str, most: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= most:
        raise invalid(f"parameters.{name}: expected {unit}, above 0 and at most {most:g}, got {_show(value)}")
    return float(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def _show(value: object) -> str:
    """A value of the client's for a message, cut short."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
