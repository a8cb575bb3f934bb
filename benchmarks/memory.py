"""What each further CPU cell costs in memory beyond its model, and whether an all-ONNX runtime does without torch."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Effort, Report, main, verdict
from configurations import dealt_out
from load import infer, wrk
from models import PIXELS, TINY_INPUT, tiny_onnx, tiny_torch
from serving import runtime

from ensemble_runtime.config import Hosting

FEW, MANY = 1, 9
TARGET_MIB = 60


def memory(effort: Effort) -> Report:
    """Compare a runtime of one cell with one of nine, after both have worked."""
    rows = []
    for name, make in (("TorchScript", tiny_torch), ("ONNX", tiny_onnx)):
        few, _ = _measure(make, FEW, effort)
        many, libraries = _measure(make, MANY, effort)
        each = (many - few) / (MANY - FEW) / 2**20
        rows.append(
            [
                name,
                f"{few / 2**20:.0f}",
                f"{many / 2**20:.0f}",
                f"{each:.1f} ({verdict(each, TARGET_MIB, at_most=True)})",
                ", ".join(sorted(libraries)) or "neither",
            ]
        )
    return Report(
        f"Proportional set size of all the runtime's processes, shared memory included, without the model files' own "
        f"bytes; members 784 -> 256 -> 10 with a process each (PerCell), after {effort.seconds:g} s of load.",
        ["format", f"{FEW} cell, MiB", f"{MANY} cells, MiB", "each further cell, MiB", "model libraries mapped"],
        rows,
    )


def _measure(make: Callable[[Path, int], list[Path]], cells: int, effort: Effort) -> tuple[float, set[str]]:
    """Bytes of a loaded runtime beyond its models, and the model libraries that any of its processes has mapped."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), cells)
        config = dealt_out("tiny", paths, TINY_INPUT, Hosting.PER_CELL)
        with runtime(config) as (base, process):
            row = np.zeros((1, PIXELS), dtype=np.float32)
            wrk(infer(base, config.name, row), 64, effort.seconds)
            folders = _processes(process.pid)
            total = sum(_proportional_set_size(folder) for folder in folders)
            libraries = {name for folder in folders for name in _model_libraries(folder)}
        return total - sum(path.stat().st_size for path in paths), libraries


def _processes(parent: int) -> list[Path]:
    """A process and all that descend from it."""
    found = [Path("/proc") / str(parent)]
    for thread in (found[0] / "task").iterdir():
        for child in (thread / "children").read_text().split():
            found += _processes(int(child))
    return found


def _proportional_set_size(process: Path) -> int:
    """Bytes, each shared page divided by the processes that share it."""
    found = re.search(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _model_libraries(process: Path) -> set[str]:
    maps = (process / "maps").read_text()
    return {name for name, sign in (("torch", "libtorch"), ("onnxruntime", "onnxruntime_pybind11")) if sign in maps}


if __name__ == "__main__":
    main(memory, seconds=3, rounds=1)
