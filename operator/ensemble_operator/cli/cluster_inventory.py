"""`ensemblectl inventory`: what a cluster has for ensembles, and who holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.cluster import Body, Cluster
from ensemble_operator.cli.output import Output, emit, grid
from ensemble_operator.inventory.claim_record import allocated
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory, Node
from ensemble_operator.inventory.node_record import node_record
from ensemble_operator.inventory.pod_record import broken_devices, claimed, held_devices
from ensemble_operator.inventory.slices import slice_record
from ensemble_operator.inventory.survey import inventory
from ensemble_operator.manifests.labels import ENSEMBLE

if TYPE_CHECKING:
    from rich.console import RenderableType

_MIB = 2**20
Holders = dict[tuple[str, str], str]
"""(node, device) -> namespace/name of the ensemble that holds it."""


def show_inventory(cluster: Cluster, output: Output) -> None:
    """Print every node with its devices, who holds them, and why others are not offered.

    Raises:
        EnsembleError: The cluster cannot be asked, or does not let this user read nodes.
    """
    pods = cluster.pods(everywhere=True)
    found, holders = survey(cluster, pods), _holders(pods)
    emit(output, [_document(node, holders) for node in found.nodes], lambda: _table(found, holders))


def survey(cluster: Cluster, pods: Iterable[Body]) -> Inventory:
    """What the cluster has, as the operator sees it but for a static inventory."""
    uses = [use for pod in pods if (use := claimed(pod)) is not None]
    claims = [taken for claim in cluster.claims() if (taken := allocated(claim)) is not None]
    nodes = [node_record(node) for node in cluster.nodes()]
    slices = [slice_record(s) for s in cluster.slices()]
    return inventory(nodes, uses, slices, claims, held=held_devices(uses), broken=broken_devices(uses))


def _holders(pods: Iterable[Body]) -> Holders:
    holders: Holders = {}
    for pod in pods:
        if (use := claimed(pod)) is not None and use.holds is not None:
            labels = pod["metadata"].get("labels") or {}
            holders |= dict.fromkeys(use.holds, f"{use.namespace}/{labels.get(ENSEMBLE) or use.name}")
    return holders


def _document(node: Node, holders: Holders) -> dict[str, Any]:
    return {
        "name": node.name,
        "ready": node.ready,
        "excluded": node.excluded,
        "taints": [str(taint) for taint in node.taints],
        "source": node.source.value,
        "coresFree": node.cpu_free_millis / 1000,
        "memoryFreeMib": node.memory_free_bytes // _MIB,
        "devices": [_device(device, holders) for device in node.devices],
        "cpuDevicesHeldBy": dict(sorted(_cpu_devices(node, holders).items())),
        "notes": list(node.notes),
    }


def _device(device: Device, holders: Holders) -> dict[str, Any]:
    return {
        "name": device.name,
        "type": device.type,
        "memoryMib": device.memory_bytes // _MIB,
        "uuid": device.uuid,
        "heldBy": holders.get((device.node, device.name)),
    }


def _cpu_devices(node: Node, holders: Holders) -> Counter[str]:
    """How many CPU devices of the node each ensemble holds."""
    gpus = {device.name for device in node.devices}
    return Counter(holder for (name, device), holder in holders.items() if name == node.name and device not in gpus)


def _table(found: Inventory, holders: Holders) -> RenderableType:
    from rich.console import Group

    columns = ["node", "state", "from", "type", "held by", "devices", "free", "MiB each", "cores", "MiB"]
    rows = [row for node in found.nodes for row in _rows(node, holders)]
    notes = [f"{node.name}: {note}" for node in found.nodes for note in node.notes]
    total = sum(len(node.devices) for node in found.nodes)
    held = sum((d.node, d.name) in holders for node in found.nodes for d in node.devices)
    title = f"{len(found.nodes)} nodes, {total} GPUs, {total - held} of them free for ensembles"
    return Group(grid(title, columns, rows, left=5), *notes)


def _rows(node: Node, holders: Holders) -> list[list[str]]:
    """A line for each type of device of a node, or one without."""
    taints = [str(taint) for taint in node.taints]
    state = ", ".join([node.excluded or "Ready", *taints])
    size = [f"{node.cpu_free_millis / 1000:g}", f"{node.memory_free_bytes // _MIB:,}"]
    kinds: dict[tuple[str, int], list[Device]] = {}
    for device in node.devices:
        kinds.setdefault((device.type, device.memory_bytes), []).append(device)
    rows = []
    for (type_, memory), devices in sorted(kinds.items()):
        held = Counter(holders[d.node, d.name] for d in devices if (d.node, d.name) in holders)
        names = ", ".join(f"{holder} ({count})" for holder, count in sorted(held.items()))
        counts = [str(len(devices)), str(len(devices) - held.total()), f"{memory // _MIB:,}"]
        rows.append([node.name, state, node.source.value, type_, names, *counts, *size])
    return rows or [[node.name, state, node.source.value, "-", "", "0", "0", "-", *size]]
