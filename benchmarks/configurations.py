"""Ensembles on this machine's cores, as the benchmarks serve them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import cores
from models import CLASSES_OUTPUT, member

from ensemble_runtime.config import Cell, Device, DeviceKind, Hosting, RuntimeConfig, Serving, TensorSpec

BATCH = 64
"""Batch limit of the small members."""


def core_device(core: int) -> Device:
    """A CPU device of one core."""
    return Device(name=f"core-{core}", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=2**32, cores=(core,))


def dealt_out(name: str, paths: Sequence[Path], spec: TensorSpec, hosting: Hosting) -> RuntimeConfig:
    """One cell a member, in turn on one core after the other."""
    devices = [core_device(core) for core in cores()]
    cells = [
        Cell(device=devices[i % len(devices)].name, member=path.stem, batch_size=BATCH) for i, path in enumerate(paths)
    ]
    return _configuration(name, paths, spec, hosting, devices, cells)


def everywhere(
    name: str, paths: Sequence[Path], spec: TensorSpec, hosting: Hosting, batches: Sequence[int]
) -> RuntimeConfig:
    """Every member on every core, so that the allocation leaves no core idle; a batch size for each member."""
    devices = [core_device(core) for core in cores()]
    cells = [
        Cell(device=device.name, member=path.stem, batch_size=batch)
        for device in devices
        for path, batch in zip(paths, batches, strict=True)
    ]
    return _configuration(name, paths, spec, hosting, devices, cells)


def _configuration(
    name: str,
    paths: Sequence[Path],
    spec: TensorSpec,
    hosting: Hosting,
    devices: Sequence[Device],
    cells: Sequence[Cell],
) -> RuntimeConfig:
    return RuntimeConfig(
        name=name,
        members=tuple(member(path) for path in paths),
        inputs=(spec,),
        outputs=(CLASSES_OUTPUT,),
        devices=tuple(devices),
        cells=tuple(cells),
        serving=Serving(hosting=hosting),
    )
