"""How long five small members take from the start of the runtime to ready."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from common import Effort, Report, main, progress, verdict
from configurations import dealt_out
from models import TINY_INPUT, tiny_onnx, tiny_torch
from serving import runtime

from ensemble_runtime.config import Hosting, RuntimeConfig

TARGET = 10.0


def starting(effort: Effort) -> Report:
    """Start and stop a mixed ensemble several times."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = tiny_torch(Path(folder), 3) + tiny_onnx(Path(folder), 2)
        for hosting in Hosting:
            config = dealt_out("small", paths, TINY_INPUT, hosting)
            times = [_seconds(config) for _ in range(effort.rounds)]
            rows.append(
                [
                    str(hosting),
                    f"{median(times):.2f} ({verdict(max(times), TARGET, at_most=True)})",
                    f"{max(times):.2f}",
                ]
            )
    return Report(
        f"Three TorchScript and two ONNX MLPs (784 -> 256 -> 10); from exec to the first 200 of /v2/health/ready; "
        f"{effort.rounds} starts, the files in the page cache.",
        ["hosting", "median, s", "slowest, s"],
        rows,
    )


def _seconds(config: RuntimeConfig) -> float:
    begin = time.monotonic()
    with runtime(config):
        passed = time.monotonic() - begin
    progress(f"{config.serving.hosting}: {passed:.2f} s")
    return passed


if __name__ == "__main__":
    main(starting, rounds=5)
