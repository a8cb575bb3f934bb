"""From an applied ensemble to its pods, with 200 ensembles there; and the requests that one ensemble's life takes."""

from __future__ import annotations

import math
import time

from common import Effort, Report, main
from operator_bed import bed, members, moments

from beds.operating import Operator, Space
from beds.processes import wait_for

THERE, FRESH, NODES = 200, 100, 80
SECONDS = 2.0
LIFE = 60
"""Most requests that are not watches in one ensemble's life."""


def benchmark(effort: Effort) -> Report:
    """Apply ensembles one after the other, twice a second."""
    with bed(NODES) as (kwok, space), Operator(kwok.plane) as operator:
        for i in range(THERE):
            space.apply(f"there-{i}", members(i))
        wait_for(lambda: len(space.pods()) == THERE, "pods of what is there", 600)
        operator.idle(3.0)
        mark = kwok.plane.mark()
        for i in range(FRESH):
            space.apply(f"fresh-{i}", members(THERE + i))
            time.sleep(0.5)
        wait_for(lambda: len(space.pods()) == THERE + FRESH, "all pods", 120)
        operator.idle(3.0)
        applied = moments(kwok.plane, "inferenceensembles", 201, mark)
        created = moments(kwok.plane, "pods", 201, mark)
        seconds = sorted(
            min(moment for pod, moment in created.items() if pod.startswith(f"{name}-")) - begun
            for name, begun in applied.items()
        )
        p99 = seconds[math.ceil(0.99 * len(seconds)) - 1]
        requests = life(space, operator)
    rows = [
        ["apply to pod created, median", f"{seconds[len(seconds) // 2]:.2f} s", ""],
        [
            "apply to pod created, p99",
            f"{p99:.2f} s",
            f"at most {SECONDS:g} s: {'met' if p99 <= SECONDS else 'missed'}",
        ],
        ["requests of one life", str(requests), f"at most {LIFE}: {'met' if requests <= LIFE else 'missed'}"],
    ]
    method = (
        f"{THERE} ensembles of two of 20 models on {NODES} nodes of 8 GPUs (KWOK) are there, {FRESH} more are applied, "
        "two a second; times are the API server's own, from its audit log. A life: made, edited (rule), scaled to two "
        "copies, deleted; counted are the operator's requests but its watches."
    )
    return Report(method, ["figure", "measured", "asked"], rows)


def life(space: Space, operator: Operator) -> int:
    """The operator's requests from an ensemble's making to its end; those of this program are not among them."""
    before = asked(operator)
    space.apply("life", members(0))
    space.wait("life")
    space.apply("life", members(0), combination={"rule": "Mean"})
    space.wait("life", "Progressing", "False")
    space.apply("life", members(0), combination={"rule": "Mean"}, replicas=2)
    wait_for(lambda: space.status("life").get("readyReplicas") == 2, "two copies")
    space.delete("life")
    wait_for(lambda: not space.items("pods", "life"), "no pod")
    operator.idle(3.0)
    return int(asked(operator) - before)


def asked(operator: Operator) -> float:
    """Requests so far."""
    name = "ensembles_operator_api_requests_total"
    return sum(value for key, value in operator.metrics().items() if key.startswith(name))


if __name__ == "__main__":
    main(benchmark)
