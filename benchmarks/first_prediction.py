"""From `kubectl apply` to the first right prediction through the Service, on a cluster of two real nodes.

Run it inside an enclosure: `make bench-cluster`. The images are on the nodes; the models are fetched anew each time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from common import Effort, Report, main, progress, verdict

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from beds import binaries, enclosure
from beds.cluster import Cluster
from beds.machines import Machines
from beds.models import COLUMNS
from beds.processes import wait_for
from beds.served import Served

SECONDS = 15.0
ROWS = np.linspace(-1, 1, 2 * COLUMNS, dtype=np.float32).reshape(2, COLUMNS)
CASES = {"profiles are there": True, "members are measured first": False}


def benchmark(effort: Effort) -> Report:
    if not enclosure.inside():
        raise RuntimeError("real nodes start only in an enclosure: make bench-cluster")
    programs = binaries.provide(enclosure.PROGRAMS, progress)
    with (
        tempfile.TemporaryDirectory() as place,
        Machines(programs, enclosure.archives(), Path(place) / "bed") as machines,
    ):
        cluster = Cluster.installed(machines, programs["helm"])
        rows = []
        for label, profiled in CASES.items():
            rounds = [first_prediction(cluster, profiled=profiled) for _ in range(effort.rounds)]
            asked = verdict(median(last for _, last in rounds), SECONDS, at_most=True)
            ready, predicted = (median(column) for column in zip(*rounds, strict=True))
            rows.append((label, f"{ready:.1f}", f"{predicted:.1f} ({asked})"))
    method = (
        "Three ONNX members, two nodes with two cores between them, the images on the nodes, the models fetched anew; "
        f"from the start of kubectl to a right answer, medians of {effort.rounds} rounds."
    )
    return Report(method, ("ensemble", "Ready, s", "first prediction, s"), rows)


def first_prediction(cluster: Cluster, *, profiled: bool) -> tuple[float, float]:
    """Seconds from `kubectl apply` until it is said to be ready, and until the first right answer."""
    ensemble = Served(cluster, cluster.plane.namespace(enforce="restricted"), "digits")
    if profiled:
        ensemble.profiles()
    start = time.monotonic()
    ensemble.apply()
    ensemble.wait()
    ready = time.monotonic() - start
    wait_for(answering(ensemble), "a prediction")
    predicted = time.monotonic() - start
    progress(f"ready after {ready:.1f} s, first prediction after {predicted:.1f} s")
    ensemble.delete()
    return ready, predicted


def answering(ensemble: Served) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return ensemble.right(ROWS, ensemble.predict(ROWS))
        except Exception:  # the client's own errors: nobody listens yet
            return False

    return answers


if __name__ == "__main__":
    main(benchmark)
