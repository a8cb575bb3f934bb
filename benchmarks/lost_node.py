"""Time without service when the node of an ensemble's only copy dies without a word, and another has room.

Brings up a cluster of real nodes: needs root on Linux and what `make test-e2e` needs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import Effort, Report, main, progress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

from beds import binaries, enclosure
from beds.cluster import Cluster
from beds.machines import GRACE_SECONDS, Machines
from beds.processes import wait_for
from beds.served import Served


def benchmark(effort: Effort) -> Report:
    """Kill the node that serves, again and again."""
    rounds = []
    programs = binaries.provide(enclosure.PROGRAMS, progress)
    with (
        tempfile.TemporaryDirectory() as folder,
        Machines(programs, enclosure.archives(), Path(folder) / "bed", count=3) as machines,
    ):
        cluster = Cluster.installed(machines, programs["helm"])
        devices = machines.whole_nodes()
        only = Served(cluster, "default", "only", 3, devices=devices)
        only.profiles(f"cpu-{devices['cpuCoresPerDevice']}")
        only.apply()
        for _ in range(effort.rounds):
            rounds.append(lost(machines, only))
            progress(f"noticed after {rounds[-1][0]:.1f} s, served after {rounds[-1][1]:.1f} s")
    noticed, served = ([one[i] for one in rounds] for i in range(2))
    restored = [after - before for before, after in rounds]
    rows = [
        [label, f"{median(seconds):.1f} s", f"{min(seconds):.1f} to {max(seconds):.1f} s"]
        for label, seconds in (
            ("until Kubernetes notices", noticed),
            ("from there to the first answer", restored),
            ("without service", served),
        )
    ]
    method = (
        f"Three members on the cores of one node, models fetched anew over HTTP, images there; 40 requests/s through "
        f"the Service, each given up after 1 s. The node is cut off from the network and all its processes are killed. "
        f"Kubernetes gives a node that is not heard of {GRACE_SECONDS} s here, 50 s by default: add the difference. "
        f"{effort.rounds} times."
    )
    return Report(method, ["time", "median", "range"], rows)


def lost(machines: Machines, only: Served) -> tuple[float, float]:
    """Seconds from the last answer before the node was killed until it is known to be away, and to the next answer."""
    only.has(1)
    (pod,) = only.pods()
    node = machines.nodes[pod["spec"]["nodeName"]]
    with only.load(timeout=1.0) as load:
        load.more()
        killed = time.monotonic()
        node.kill()
        wait_for(lambda: not node.ready(), f"{node.name} noticed", 120)
        noticed = time.monotonic() - killed
        load.more()
        gap = load.gap()
    node.start([])
    return noticed, gap


if __name__ == "__main__":
    if not enclosure.inside():
        raise SystemExit(abs(enclosure.main([sys.executable, *sys.argv])))
    main(benchmark)
