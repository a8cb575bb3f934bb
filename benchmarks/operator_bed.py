"""The bed of the operator's benchmarks: a real control plane with KWOK nodes, and what its audit log tells of times."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

from beds.binaries import CONTROL_PLANE, provide  # noqa: E402  # the path to it is set above
from beds.controlplane import ControlPlane  # noqa: E402
from beds.kwok import Kwok, gpu_node  # noqa: E402
from beds.operating import Space  # noqa: E402

GPUS = 8
MODELS = tuple(f"model-{i:02}" for i in range(20))


@contextmanager
def bed(nodes: int) -> Iterator[tuple[Kwok, Space]]:
    """A control plane with so many nodes of eight GPUs, and a namespace with the profiles of all models."""
    programs = provide((*CONTROL_PLANE, "kwok"), print)
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane(programs, Path(folder)) as plane,
        Kwok(programs["kwok"], plane) as kwok,
    ):
        plane.install_crds(ROOT / "crds")
        kwok.add(*(gpu_node(f"node-{i:04}", count=GPUS) for i in range(nodes)))
        space = Space(plane, plane.namespace())
        for i, model in enumerate(MODELS):
            space.profiles(model, seconds=0.004 + 0.001 * i, memory_mib=2048 + 512 * i)
        yield kwok, space


def members(i: int) -> dict[str, float]:
    """Two of the models, by weight: 190 pairs, each a question of its own to the planner."""
    pairs = tuple(combinations(MODELS, 2))
    return dict.fromkeys(pairs[i % len(pairs)], 1.0)


def moments(plane: ControlPlane, resource: str, code: int, since: int) -> dict[str, float]:
    """When objects were made: name -> seconds, by the API server's own clock as it answered.

    Args:
        plane: The control plane.
        resource: Plural.
        code: Of the answer that counts, e.g. 201.
        since: A mark of the audit log.
    """
    found: dict[str, float] = {}
    with (plane.folder / "audit.log").open("rb") as log:
        log.seek(since)
        for line in log:
            event = json.loads(line)
            target = event.get("objectRef", {})
            answered = event.get("responseStatus", {}).get("code") == code and event["verb"] in ("create", "patch")
            if answered and target.get("resource") == resource and "subresource" not in target:
                moment = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
                found.setdefault(target.get("name", ""), moment)
    return found
