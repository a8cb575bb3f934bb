"""The inventory: what each node has for our ensembles, from whichever source tells of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from ensemble_operator.inventory.claim_record import ClaimUse, others_devices
from ensemble_operator.inventory.labels import labelled, plugin_gpus
from ensemble_operator.inventory.node import Inventory, Node, Source
from ensemble_operator.inventory.node_record import NodeRecord
from ensemble_operator.inventory.offer import Offer
from ensemble_operator.inventory.pod_record import PodUse
from ensemble_operator.inventory.slices import DRIVERS, DriverWords, Slice, published, unknown_drivers
from ensemble_operator.inventory.static import StaticInventory, assumed, stated

GPU_RESERVE_BYTES = 600 * 2**20

_BOTH = (
    "both a DRA driver and a device plugin offer this node's GPUs, and neither knows what the other gave away; "
    "run one of the two on a node"
)


def inventory(
    nodes: Iterable[NodeRecord],
    pods: Iterable[PodUse] = (),
    slices: Iterable[Slice] = (),
    claims: Iterable[ClaimUse] = (),
    static: StaticInventory | None = None,
    held: Mapping[str, Collection[str]] | None = None,
    *,
    reserve_bytes: int = GPU_RESERVE_BYTES,
    drivers: Mapping[str, DriverWords] = DRIVERS,
    broken: Mapping[str, Collection[str]] | None = None,
) -> Inventory:
    """Put together what the cluster has; the order of what is given plays no part.

    Args:
        nodes: Nodes of the cluster (`node_record`); empty where they may not be read.
        pods: What pods take (`claimed`).
        slices: Published devices (`slice_record`).
        claims: Allocated devices (`allocated`).
        static: What a person stated; counts before labels and slices on the nodes that it names.
        held: Names of the devices that pods of ours hold, by node (`held_devices`).
        reserve_bytes: Memory of each GPU that is not for members.
        drivers: DRA drivers whose devices are GPUs.
        broken: Names of the broken devices that pods of ours hold, by node (`broken_devices`).
    """
    held, broken, slices = held or {}, broken or {}, tuple(slices)
    taken: dict[str, Counter[str]] = {}
    for pod in pods:
        if pod.holds is None:
            taken.setdefault(pod.node, Counter()).update(pod.requests)
    strangers = unknown_drivers(slices, drivers)
    offers = published(slices, others_devices(claims), held, reserve_bytes, drivers)
    known = static.nodes if static else {}
    records = {node.name: node for node in nodes}
    records |= {name: assumed(node) for name, node in known.items() if name not in records}
    found = []
    for name in sorted(records):
        record, use, ours = records[name], taken.get(name, Counter()), held.get(name, ())
        if name in known:
            source, offer = Source.STATIC, stated(known[name], use, ours, reserve_bytes)
        elif plugin_gpus(record) and name in offers:
            source, offer = Source.NONE, Offer(notes=(_BOTH,))
        elif name in offers:
            source, offer = Source.RESOURCE_SLICES, offers[name]
        elif plugin_gpus(record):
            source, offer = Source.LABELS, labelled(record, use, ours, reserve_bytes, broken.get(name, ()))
        else:
            source, offer = Source.NONE, Offer()
        ignored = (f"devices of driver {driver} are no GPUs that are known" for driver in strangers.get(name, ()))
        found.append(_node(record, use, source, offer, (*offer.notes, *sorted(ignored))))
    return Inventory(tuple(found))


def _node(record: NodeRecord, taken: Mapping[str, int], source: Source, offer: Offer, notes: tuple[str, ...]) -> Node:
    cpu, memory = record.allocatable.get("cpu", 0), record.allocatable.get("memory", 0)
    return Node(
        name=record.name,
        ready=record.ready,
        excluded=None if record.ready and not record.cordoned else "Cordoned" if record.ready else "NotReady",
        devices=offer.devices,
        cpu_millis=cpu,
        memory_bytes=memory,
        cpu_free_millis=max(0, cpu - taken.get("cpu", 0)),
        memory_free_bytes=max(0, memory - taken.get("memory", 0)),
        taints=record.taints,
        labels=record.labels,
        source=source,
        notes=notes,
    )
