"""Nodes and GPUs that a person states in a ConfigMap: for installs that may not read nodes, or nodes without labels."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from ensemble_operator.api.contradiction import distinct
from ensemble_operator.api.document import Document, Fault, documents
from ensemble_operator.api.ensemble import DeviceType
from ensemble_operator.api.faults import explain
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.labels import GPU, names
from ensemble_operator.inventory.node import Source
from ensemble_operator.inventory.node_record import NodeRecord
from ensemble_operator.inventory.offer import Offer
from ensemble_operator.inventory.product import device_type
from ensemble_runtime.config import DeviceKind, ObjectName, Schema
from ensemble_runtime.errors import ManifestError

KEY = "nodes.yaml"
"""Key of the ConfigMap's data."""
_MIB = 2**20


class StaticGpus(Schema):
    """GPUs of a node; all alike, for nobody can choose among those of a device plugin."""

    type: DeviceType = Field(description="What profiles are keyed by, e.g. NVIDIA-A100-SXM4-40GB.")
    count: int = Field(ge=1, le=64, description="How many there are for ensembles and others.")
    memory_mib: int = Field(ge=1, le=2**24, description="Memory of each.")


class StaticNode(Schema):
    """A node as stated."""

    name: ObjectName = Field(description="The node's name: pods are pinned to it.")
    gpus: StaticGpus | None = Field(None, description="Its GPUs.")
    cores: int = Field(0, ge=0, le=4096, description="Cores for ensembles, where the node itself cannot be read.")
    memory_mib: int = Field(0, ge=0, le=2**30, description="Memory that goes with them.")


class _Nodes(Schema):
    nodes: Annotated[tuple[StaticNode, ...], distinct("name")] = Field(max_length=5000)


@dataclass(frozen=True, slots=True)
class StaticInventory:
    """All nodes as stated, by name."""

    nodes: Mapping[str, StaticNode]


def static_inventory(data: Mapping[str, str], source: str = "static inventory") -> StaticInventory:
    """Read the ConfigMap's data: under `nodes.yaml` a YAML list of nodes.

    Raises:
        ManifestError: One line a fault, each with the path and what was expected.
    """
    if KEY not in data:
        raise ManifestError(f"{source}: no key '{KEY}'; expected it to hold a YAML list of nodes")
    try:
        found = list(documents(data[KEY]))
    except (yaml.YAMLError, ValueError) as error:
        raise ManifestError(f"{source}: {str(error).replace(chr(10), ' ')}") from error
    if len(found) != 1 or not isinstance(found[0].value, list):
        raise ManifestError(f"{source}: expected one YAML list of nodes")
    try:
        parsed = _Nodes.model_validate_json(json.dumps({"nodes": found[0].value}), by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [*found[0].faults, *explain(error, _Nodes)]
        raise ManifestError("\n".join(_lines(source, found[0], faults))) from error
    if found[0].faults:
        raise ManifestError("\n".join(_lines(source, found[0], found[0].faults)))
    return StaticInventory({node.name: node for node in parsed.nodes})


def stated(node: StaticNode, taken: Mapping[str, int], held: Collection[str], reserve_bytes: int) -> Offer:
    """The GPUs of a node as stated, less those that pods that are not ours request; arguments as in `labelled`."""
    if node.gpus is None:
        return Offer()
    memory = node.gpus.memory_mib * _MIB
    if memory <= reserve_bytes:
        return Offer(
            notes=(f"the reserve of {reserve_bytes // _MIB} MiB leaves nothing of {node.gpus.memory_mib} MiB",)
        )
    count = max(0, node.gpus.count - taken.get(GPU, 0))
    kind, type_ = DeviceKind.GPU, device_type(node.gpus.type)
    devices = (
        Device(name, node.name, kind, type_, memory - reserve_bytes, source=Source.STATIC)
        for name in names("gpu", count, held)
    )
    return Offer(tuple(devices))


def assumed(node: StaticNode) -> NodeRecord:
    """What is taken for granted of a node that cannot be read: it is ready, and nothing keeps pods off it."""
    allocatable = {"cpu": node.cores * 1000, "memory": node.memory_mib * _MIB}
    return NodeRecord(node.name, ready=True, cordoned=False, taints=(), labels={}, allocatable=allocatable)


def _lines(source: str, document: Document, faults: Collection[Fault]) -> Iterator[str]:
    for fault in faults:
        below = fault.path[1:] if fault.path[:1] == ("nodes",) else fault.path
        line = fault.line or document.line(below)
        yield f"{source}:{line}: {fault}" if line else f"{source}: {fault}"
