"""`ensemblectl status`: what became of the ensembles of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.cluster import Body, Cluster
from ensemble_operator.cli.output import Output, emit, figure, grid

if TYPE_CHECKING:
    from rich.console import RenderableType

_NONE = "-"


def show_status(cluster: Cluster, name: str | None, output: Output) -> None:
    """Print the status of one ensemble in full, or of all of the namespace in a line each.

    Raises:
        EnsembleError: There is none of that name, or the cluster cannot be asked.
    """
    found = cluster.ensembles(name)
    documents = [_document(body) for body in found]
    if name is not None:
        emit(output, documents[0], lambda: _one(found[0]))
    else:
        emit(output, documents, lambda: _all(found, cluster.namespace))


def condition(body: Body, kind: str) -> Mapping[str, Any]:
    """A condition of an ensemble; empty where it has none of this type."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def stale(body: Body) -> bool:
    """Whether the status speaks of an older spec, or there is none yet."""
    return bool((body.get("status") or {}).get("observedGeneration") != body["metadata"].get("generation"))


def _document(body: Body) -> dict[str, Any]:
    metadata = body["metadata"]
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "stale": stale(body),
        "status": body.get("status") or {},
    }


def _all(found: list[Body], namespace: str) -> RenderableType:
    columns = ["name", "ready", "reason", "members", "copies", "devices", "nodes", "rows/s", "observed"]
    rows = [_row(body, body.get("status") or {}) for body in found]
    return grid(f"Ensembles of namespace {namespace}", columns, rows, left=3)


def _row(body: Body, status: Mapping[str, Any]) -> list[str]:
    ready = "stale" if stale(body) else condition(body, "Ready").get("status", "Unknown")
    copies = f"{status.get('readyReplicas', 0)}/{body['spec'].get('replicas', 1)}"
    plain = [str(status.get(field, _NONE)) for field in ("members", "devices", "nodes")]
    reason = status.get("reason") or ""
    return [body["metadata"]["name"], ready, reason, plain[0], copies, *plain[1:], *_rates(status)]


def _rates(status: Mapping[str, Any]) -> list[str]:
    return [figure(status[f]) if f in status else _NONE for f in ("rate", "observedRate")]


def _one(body: Body) -> RenderableType:
    from rich.console import Group

    status = body.get("status") or {}
    parts: list[RenderableType] = ["\n".join(_head(body, status)), ""]
    conditions = [[c["type"], c["status"], c["reason"], c.get("message", "")] for c in status.get("conditions") or ()]
    parts.append(grid("Conditions", ["type", "status", "reason", "message"], conditions, left=4))
    if status.get("matrix"):
        parts.append(grid("Devices", ["node", "device", "type", "uuid", "from", "members"], _matrix(status), left=6))
    if failure := status.get("lastFailure"):
        where = f"pod {failure['pod']}, container {failure['container']}"
        parts.append(f"last failure: {where}, exit code {failure['exitCode']}: {failure['message']}")
    return Group(*parts)


def _head(body: Body, status: Mapping[str, Any]) -> Iterator[str]:
    name, predicted = body["metadata"]["name"], _rates(status)
    yield f"{name}: {status.get('members', '0')} members, " + (
        f"{status.get('readyReplicas', 0)} of {body['spec'].get('replicas', 1)} copies ready"
    )
    if stale(body):
        yield "the operator has not seen this spec yet; what follows is of an older one"
    yield f"plan {status.get('plan') or _NONE}: {predicted[0]} rows/s predicted, {predicted[1]} observed"
    if status.get("bottleneck"):
        yield f"bottleneck: {status['bottleneck']}"
    for url in status.get("endpoints") or ():
        yield f"endpoint: {url}"
    if seen := status.get("inventory"):
        sources = ", ".join(seen.get("sources") or ()) or "no source"
        yield f"could choose from {seen.get('devices', 0)} devices, {seen.get('free', 0)} of them free ({sources})"


def _matrix(status: Mapping[str, Any]) -> list[list[str]]:
    return [
        [row["node"], row["device"], row["type"], row.get("uuid") or _NONE, row["source"], _cells(row)]
        for row in status["matrix"]
    ]


def _cells(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{cell['member']} x{cell['batchSize']}" for cell in row.get("cells") or ())
