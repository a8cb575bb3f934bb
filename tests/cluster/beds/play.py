"""`make cluster-demo` and `make cluster-shell`: a cluster on this machine with the chart and one ensemble, to look at.

Runs inside an enclosure, with `demo` or `shell`; Ctrl-D ends the shell, and with it everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from beds import binaries, enclosure
from beds.cluster import Cluster
from beds.machines import Machines
from beds.models import COLUMNS, combined
from beds.served import Served

NAME = "three-nets"


def main(mode: str) -> int:
    """Bring it up, install, apply, show; in `shell` mode hand it over then."""
    programs = binaries.provide(enclosure.PROGRAMS, _say)
    with tempfile.TemporaryDirectory() as place:
        _say("two nodes, Services, DNS ...")
        with Machines(programs, enclosure.archives(), Path(place) / "bed") as machines:
            _say("helm install ...")
            _show(_applied(Cluster.installed(machines, programs["helm"])))
            if mode == "shell":
                _shell(machines, programs)
    return 0


def _applied(cluster: Cluster) -> Served:
    """An ensemble that is ready; its members have been measured first, as nobody has written profiles."""
    ensemble = Served(cluster, "default", NAME)
    _say("kubectl apply ...")
    start = time.monotonic()
    ensemble.apply()
    try:
        ensemble.wait()
    except TimeoutError:
        print(cluster.report())
        raise
    _say(f"ready after {time.monotonic() - start:.1f} s")
    return ensemble


def _show(ensemble: Served) -> None:
    print(f"\n$ kubectl get ie,pods -o wide\n{ensemble.cluster.plane.kubectl('get', 'ie,pods', '-o', 'wide')}")
    print("the matrix:")
    for row in ensemble.space.status(NAME)["matrix"]:
        cells = ", ".join(f"{cell['member']} x {cell['batchSize']}" for cell in row["cells"])
        print(f"{row['node']:10} {row['device']:8} {row['type']:24} {cells}")
    rows = np.linspace(-1, 1, 2 * COLUMNS, dtype=np.float32).reshape(2, COLUMNS)
    print(f"\npredictions through the Service:\n{ensemble.predict(rows)}")
    print(f"the same in numpy:\n{combined(ensemble.manifest['spec'], rows)}", flush=True)


def _shell(machines: Machines, programs: dict[str, Path]) -> None:
    tools = os.pathsep.join(str(programs[name].parent) for name in ("kubectl", "helm"))
    environment = os.environ | {
        "KUBECONFIG": str(machines.plane.kubeconfig()),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PS1": "cluster$ ",
    }
    print("kubectl and helm speak to the cluster; Ctrl-D ends it.", flush=True)
    subprocess.run(["bash", "--norc"], env=environment)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
