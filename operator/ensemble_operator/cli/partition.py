"""`ensemblectl partition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_operator.cli.output import Output, emit, figure, grid
from ensemble_operator.cli.partition_chart import gantt
from ensemble_operator.cli.partition_page import above_best, page
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.local import local_devices
from ensemble_operator.inventory.runtime_command import records
from ensemble_operator.manifests.runtime_config import plain_device
from ensemble_operator.profiles.table import MIB
from ensemble_runtime.config import DeviceKind, Member, ModelFormat, ModelSource, Partition
from ensemble_runtime.errors import DeviceUnavailableError, ManifestError, ModelUnavailableError


@dataclass(frozen=True)
class Question:
    """What to partition."""

    file: Path
    partition: Partition
    devices: tuple[str, str]
    """Names of two devices of this machine, or ``gpu`` and ``cpu`` for the first and the next of the kind."""
    simulated: str | None
    """Costs of a GPU that is not there, as ``speedup=8,latencyUs=15``."""
    rows: int
    shapes: Mapping[str, tuple[int, ...]]


def show_partition(question: Question, *, html: Path | None, output: Output) -> None:
    """Measure a model on two devices, find who computes what, and print the schedule.

    Raises:
        EnsembleError: The model or a device cannot be used, or no schedule is as quick as it is to be.
    """
    (found,) = records("partition", document=_request(question))
    if html is not None:
        html.write_text(page(question.file.name, found))
    emit(output, found, lambda: _shown(question.file.name, found))


def _request(question: Question) -> dict[str, Any]:
    if not question.file.is_file():
        raise ModelUnavailableError(f"{question.file}: no such file")
    source = ModelSource(uri=question.file.resolve().as_uri(), format=ModelFormat.ONNX)
    member = Member(name="model", model=source, partition=question.partition)
    devices = [device.model_dump(mode="json", by_alias=True) for device in map(plain_device, _devices(question))]
    return {
        "member": member.model_dump(mode="json", by_alias=True),
        "batchSizes": [question.rows],
        "shapes": question.shapes,
        "devices": devices,
        "simulated": None if question.simulated is None else _costs(question.simulated),
    }


def _devices(question: Question) -> tuple[Device, Device]:
    here = local_devices(1)
    if question.simulated is not None:
        memory = 16 * 2**30
        return Device("gpu", "local", DeviceKind.SIMULATED, "simulated-gpu", memory), _named(
            here, question.devices[1], ()
        )
    first = _named(here, question.devices[0], ())
    return first, _named(here, question.devices[1], (first.name,))


def _named(devices: Sequence[Device], name: str, taken: Sequence[str]) -> Device:
    """The device of a name, or the first of a kind that is not taken."""
    for device in devices:
        if device.name == name or (device.kind.value.lower() == name and device.name not in taken):
            return device
    raise DeviceUnavailableError(
        f"there is no{'' if not taken else ' further'} device '{name}' here; expected gpu, cpu, or one of "
        f"{', '.join(device.name for device in devices)}"
    )


def _costs(text: str) -> dict[str, Any]:
    """`speedup=8,LSTM=2,latencyUs=15` as a document; names of operators are speed-ups of their own."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not equals or number < 0:
            raise ManifestError(f"--simulated-gpu: got '{part}', expected e.g. speedup=8,LSTM=3,latencyUs=15")
        if name in ("speedup", "launchUs", "latencyUs", "gibPerSecond"):
            found[name] = number
        else:
            found.setdefault("speedups", {})[name] = number
    return found


def _shown(name: str, found: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    devices = [f"{device['name']} ({device['type']})" for device in found["devices"]]
    rows = [
        _row(f"all on {device}", base)
        for device, base in zip(devices, found["baselines"], strict=True)
        if base is not None
    ]
    rows.append(_row("chosen", found["choice"]))
    told = _compared(found)
    if "gap" in found:
        told.append(above_best(found["gap"]))
    columns = ["schedule", "time steps a chunk", "ms", f"MiB on {devices[0]}", f"MiB on {devices[1]}"]
    curve = [[figure(point["makespanMs"]), figure(point["scarceBytes"] / MIB)] for point in found["curve"]]
    parts = [
        grid(f"{name}, {found['objective']}, {found['batchSize']} row(s)", columns, rows, left=2),
        Text("; ".join(told)),
        Text(),
        gantt(found),
        grid(f"Memory on {devices[0]} against latency", ["ms", "MiB"], curve, left=0),
    ]
    if found["simulated"]:
        parts.append(Text(f"{devices[0]} is simulated: its costs were stated, not measured."))
    return Group(*parts)


def _compared(found: Mapping[str, Any]) -> list[str]:
    """What was found against the quicker device alone, where one has room for all of it and computes it."""
    best = min((base["makespanMs"] for base in found["baselines"] if base is not None), default=None)

    def times(milliseconds: float) -> str:
        return "" if best is None else f", {best / milliseconds:.2f}x"

    told = ["neither device takes all of it"]
    if best is not None:
        told = [f"{best / found['choice']['makespanMs']:.2f}x of the quicker device alone"]
    if "measuredMs" in found:
        told.append(f"run as chosen: {figure(found['measuredMs'])} ms{times(found['measuredMs'])}")
    if "threadsMs" in found:
        told.append(f"whole, by threads on both: {figure(found['threadsMs'])} ms{times(found['threadsMs'])}")
    return told


def _row(title: str, point: Mapping[str, Any]) -> list[str]:
    steps = {None: "not opened", 0: "whole directions"}.get(point["timeSteps"], str(point["timeSteps"]))
    if point["byGates"]:
        steps = "by gates"
    sizes = (point["makespanMs"], point["scarceBytes"] / MIB, point["otherBytes"] / MIB)
    return [title, steps, *map(figure, sizes)]


def shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`x=1,64,256` as sizes by input.

    Raises:
        ManifestError: A text is not of this form.
    """
    found = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.split(",") if size)
        except ValueError:
            raise ManifestError(f"--shape: got '{text}', expected e.g. x=1,64,256") from None
    return found
