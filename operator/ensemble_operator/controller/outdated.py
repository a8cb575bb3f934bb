"""Whether the API server knows every field of this operator: what its CRDs do not have, it drops without a word.

Helm's upgrade brings new CRDs with the chart, but not where they are installed by other means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ensemble_operator.api.crd import crds
from ensemble_operator.controller.kube import Kube, KubeError
from ensemble_operator.controller.metrics import Metrics
from ensemble_operator.controller.resources import ENSEMBLES

EVERY_SECONDS = 300.0
_SHOWN = 5
_THE_SERVERS_OWN = frozenset({"apiVersion", "kind", "metadata"})

_log = logging.getLogger(__name__)

Node = Mapping[str, Any]


async def watch_schemas(kube: Kube, metrics: Metrics) -> None:
    """Look every few minutes, until cancelled; what is missing is told once, and counted in a metric."""
    told: tuple[str, ...] = ()
    while True:
        try:
            missing = await missing_fields(kube)
        except KubeError as error:  # said by whoever needs the server; this can wait
            _log.debug("cannot look at the schemas: %s", error)
        else:
            metrics.outdated.set(len(missing))
            if missing and missing != told:
                _log.warning(
                    "CRDs are older than the operator: the API server drops %s%s; apply the CRDs of this version",
                    ", ".join(missing[:_SHOWN]),
                    f" and {len(missing) - _SHOWN} more fields" if len(missing) > _SHOWN else "",
                )
            told = missing
        await asyncio.sleep(EVERY_SECONDS)


async def missing_fields(kube: Kube) -> tuple[str, ...]:
    """Fields of the operator's CRDs that the API server does not know, by kind and path.

    Raises:
        KubeError: The API server does not say.
    """
    served = await kube.schemas(ENSEMBLES)
    found: list[str] = []
    for crd in crds().values():
        kind = crd["spec"]["names"]["kind"]
        if kind in served:  # it is published a moment after the CRD is there
            found += _beyond(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], served[kind], kind)
    return tuple(found)


def _beyond(ours: Node, theirs: Node, path: str) -> Iterator[str]:
    """Paths of what our schema has and theirs lacks."""
    known = theirs.get("properties", {})
    for name, field in ours.get("properties", {}).items():
        if "." not in path and name in _THE_SERVERS_OWN:
            continue
        if name in known:
            yield from _beyond(field, known[name], f"{path}.{name}")
        elif known or not theirs.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}"
    for inner in ("items", "additionalProperties"):
        if isinstance(ours.get(inner), Mapping) and isinstance(theirs.get(inner), Mapping):
            yield from _beyond(ours[inner], theirs[inner], f"{path}[]")
