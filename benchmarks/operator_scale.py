"""1,000 ensembles on 1,000 nodes: a full resync, memory, and what an operator at rest costs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
from common import Effort, Report, main
from operator_bed import bed, members

from beds.controlplane import ADMIN, ControlPlane
from beds.operating import Operator, Space
from beds.processes import wait_for

COUNT = 1000
RESYNC_SECONDS, MEMORY_MIB, IDLE_SHARE = 60.0, 512.0, 0.05
REST_SECONDS = 60.0


def benchmark(effort: Effort) -> Report:
    """Bring all up, start the operator anew, and watch it at rest."""
    with bed(COUNT) as (kwok, space), Operator(kwok.plane) as operator:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: space.apply(f"ensemble-{i:04}", members(i)), range(COUNT)))
        wait_for(lambda: ready(space) == COUNT, "all ensembles ready", 1800)
        made = time.monotonic() - began
        operator.idle(5.0)
        memory = peak = resident(operator)

        operator.program.kill()
        mark, began = kwok.plane.mark(), time.monotonic()
        operator.start()
        operator.idle(3.0)
        resync = time.monotonic() - began - 3.0
        peak = max(peak, resident(operator))
        memory = max(memory, peak)
        time.sleep(5)
        before, now = processor(operator), time.monotonic()
        time.sleep(REST_SECONDS)
        share = (processor(operator) - before) / (time.monotonic() - now)
        written = writes(kwok.plane, mark)
    rows = [
        ["all made, from the first apply to the last pod ready", f"{made:.0f} s", ""],
        ["full resync after a restart", f"{resync:.1f} s", verdict(resync, RESYNC_SECONDS, "s")],
        ["memory, both processes", f"{memory:.0f} MiB", verdict(memory, MEMORY_MIB, "MiB")],
        ["processor at rest", f"{100 * share:.1f} % of a core", verdict(100 * share, 100 * IDLE_SHARE, "%")],
        ["writes since the restart", told(written), verdict(written.total(), 0, "")],
    ]
    method = (
        f"{COUNT} ensembles of two of 20 models on {COUNT} nodes of 8 GPUs (KWOK). The resync is from the start of the "
        f"operator's process until no cycle is left to do; it is watched at rest for {REST_SECONDS:.0f} s."
    )
    return Report(method, ["figure", "measured", "asked"], rows)


def ready(space: Space) -> int:
    """Ensembles that serve. A pod that KWOK leaves unready, as it does with some of a thousand, gets another try."""
    for pod in space.pods():
        seen = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
        if pod["status"].get("phase") == "Running" and seen.get("Ready") == "False":
            space.plane.admin.delete(f"/api/v1/namespaces/{space.namespace}/pods/{pod['metadata']['name']}")
    path = f"/apis/ensembles.dev/v1alpha1/namespaces/{space.namespace}/inferenceensembles"
    time.sleep(5)
    return sum(bool(e.get("status", {}).get("readyReplicas")) for e in space.plane.admin.items(path))


def tree(operator: Operator) -> list[psutil.Process]:
    """The operator's processes."""
    first = psutil.Process(operator.program.pid)
    return [first, *first.children(recursive=True)]


def resident(operator: Operator) -> float:
    """Memory of all its processes, MiB; pages that they share count once."""
    return sum(process.memory_full_info().pss for process in tree(operator)) / 2**20


def processor(operator: Operator) -> float:
    """Seconds of processor time so far."""
    return sum(sum(process.cpu_times()[:2]) for process in tree(operator))


def writes(plane: ControlPlane, since: int) -> Counter[str]:
    """Writes by what was written, the operator's and KWOK's; the leases are the nodes' own, which KWOK renews."""
    made = (r for r in plane.requests(ADMIN, since) if r.verb not in ("get", "list", "watch"))
    return Counter(f"{r.verb} {r.resource}" for r in made if r.resource != "leases")


def told(counts: Counter[str]) -> str:
    """How many in all, and of what."""
    return ", ".join((str(counts.total()), *(f"{what} {count}" for what, count in counts.most_common())))


def verdict(value: float, limit: float, unit: str) -> str:
    """What was asked, and whether it is so."""
    return f"at most {limit:g} {unit}".strip() + (": met" if value <= limit else ": missed")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        COUNT = int(sys.argv.pop(1))
    main(benchmark)
