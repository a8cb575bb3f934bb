"""`make cluster-demo` and `make cluster-shell`: a cluster on this machine with the chart and one ensemble, to look at.

Runs inside an enclosure, with `demo` or `shell`; Ctrl-D ends the shell, and with it everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tritonclient.http

from beds import binaries, enclosure, images
from beds.chart import Chart
from beds.machines import Machines
from beds.models import COLUMNS, classifiers
from beds.processes import wait_for

NAME = "three-nets"
READY_SECONDS = 300.0


def main(mode: str) -> int:
    """Bring it up, install, apply, show; in `shell` mode hand it over then."""
    programs = binaries.provide(enclosure.PROGRAMS, _say)
    with tempfile.TemporaryDirectory() as place:
        _say("two nodes, Services, DNS ...")
        with Machines(programs, images.archives(images.PROJECT), Path(place) / "bed") as machines:
            _say("helm install ...")
            Chart(programs["helm"], machines.plane).install()
            _apply(machines)
            _show(machines)
            if mode == "shell":
                _shell(machines, programs)
    return 0


def _apply(machines: Machines) -> None:
    plane, manifest = machines.plane, machines.models.ensemble("default", NAME)
    _say("kubectl apply ...")
    start = time.monotonic()
    plane.kubectl("apply", "-f", "-", manifests=[manifest])
    path = plane.admin.path(manifest)

    def ready() -> bool:
        conditions = plane.admin.get(path).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    try:
        wait_for(ready, f"{NAME} ready", READY_SECONDS)
    except TimeoutError:
        print(plane.kubectl("describe", "ie", NAME), plane.kubectl("get", "pods,events", "-A"), sep="\n")
        raise
    _say(f"ready after {time.monotonic() - start:.1f} s")


def _show(machines: Machines) -> None:
    plane = machines.plane
    print(plane.kubectl("get", "ie", "-o", "wide"))
    print(plane.kubectl("get", "pods", "-o", "wide"))
    status = json.loads(plane.kubectl("get", "ie", NAME, "-o", "json"))["status"]
    for row in status["matrix"]:
        cells = ", ".join(f"{cell['member']} x {cell['batchSize']}" for cell in row["cells"])
        print(f"{row['node']:10} {row['device']:8} {row['type']:24} {cells}")
    service = plane.admin.get(f"/api/v1/namespaces/default/services/{NAME}")["spec"]
    client = tritonclient.http.InferenceServerClient(f"{service['clusterIP']}:{service['ports'][0]['port']}")
    rows = np.linspace(-1, 1, 2 * COLUMNS, dtype=np.float32).reshape(2, COLUMNS)
    tensor = tritonclient.http.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    answer = client.infer(NAME, [tensor]).as_numpy("y")
    print(f"predictions through the Service:\n{answer}")
    expected = np.mean([one.predict(rows) for one in classifiers(3)], axis=0)
    print(f"the same in numpy:\n{expected}")


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
