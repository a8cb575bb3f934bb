"""GPUs that drivers publish as ResourceSlices (dynamic resource allocation, resource.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ensemble_operator.inventory.claim_record import Identity
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Source
from ensemble_operator.inventory.offer import Offer
from ensemble_operator.inventory.product import device_type
from ensemble_operator.inventory.quantity import whole
from ensemble_runtime.config import DeviceKind, Schema

_MIB = 2**20


class DriverWords(Schema):
    """What a driver calls the attributes and the capacity that matter."""

    device_class: str = ""
    """The DeviceClass to claim from; empty: the one that is called as the driver is."""
    uuid: str = "uuid"
    product: str = "productName"
    kind: str = "type"
    gpu_kinds: frozenset[str] = frozenset({"gpu", "mig"})
    """Values of `kind` that are GPUs for computing; a driver without that attribute has nothing else."""
    profile: str = "profile"
    memory: str = "memory"


DRIVERS: Mapping[str, DriverWords] = MappingProxyType({"gpu.nvidia.com": DriverWords()})


@dataclass(frozen=True, slots=True)
class SliceDevice:
    """A device of a slice."""

    name: str
    node: str
    attributes: Mapping[str, str]
    """Without the driver's domain before the names."""
    capacity: Mapping[str, int]
    taints: tuple[str, ...]
    """Effects."""
    counters: frozenset[str]
    """Sets of counters that it shares with other devices: partitions of one GPU."""
    shareable: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """A ResourceSlice, slim."""

    name: str
    driver: str
    pool: str
    generation: int
    count: int
    """Slices of the complete pool."""
    devices: tuple[SliceDevice, ...]


def slice_record(body: Mapping[str, Any]) -> Slice:
    """Read a ResourceSlice as the API server gives it; devices that belong to no single node are left out."""
    spec = body["spec"]
    pool = spec["pool"]
    everywhere = spec.get("nodeName") or ""
    devices = (_device(d, d.get("nodeName") or everywhere) for d in spec.get("devices") or ())
    return Slice(
        name=body["metadata"]["name"],
        driver=spec["driver"],
        pool=pool["name"],
        generation=int(pool.get("generation") or 0),
        count=int(pool.get("resourceSliceCount") or 1),
        devices=tuple(device for device in devices if device.node),
    )


def published(
    slices: Iterable[Slice],
    allocated: Collection[Identity],
    held: Mapping[str, Collection[str]],
    reserve_bytes: int,
    drivers: Mapping[str, DriverWords] = DRIVERS,
) -> dict[str, Offer]:
    """The GPUs that drivers publish, by node; nodes of which they publish none are absent.

    Only the highest generation of a pool counts, and only when all its slices are there; till then the pool offers
    what pods of ours hold in it, and no more.

    Args:
        slices: All there are.
        allocated: Devices that claims of others have.
        held: By node, the names of devices that pods of ours hold.
        reserve_bytes: Memory of each GPU that is not for members.
        drivers: The drivers whose devices are GPUs; others are ignored.
    """
    pools: dict[tuple[str, str], list[Slice]] = {}
    for slice_ in slices:
        if slice_.driver in drivers:
            pools.setdefault((slice_.driver, slice_.pool), []).append(slice_)
    found: dict[str, dict[str, Device]] = {}
    notes: dict[str, list[str]] = {}
    for (driver, name), parts in sorted(pools.items()):
        words, pool = drivers[driver], _pool(name, parts)
        used = {device for d, p, device in allocated if (d, p) == (driver, name)}
        for device in pool.devices:
            if not _is_gpu(device, words):
                continue
            offered = found.setdefault(device.node, {})
            ours = device.name in held.get(device.node, ())
            reason = _reason(device, words, ours, pool, used, reserve_bytes)
            if reason is None and device.name in offered:
                reason = f"{device.name}: two drivers publish a device of this name"
            if reason is None:
                offered[device.name] = _as_gpu(device, driver, words, reserve_bytes)
            elif reason:
                notes.setdefault(device.node, []).append(reason)
    return {
        node: Offer(tuple(devices[name] for name in sorted(devices)), tuple(dict.fromkeys(notes.get(node, ()))))
        for node, devices in found.items()
    }


def unknown_drivers(slices: Iterable[Slice], drivers: Mapping[str, DriverWords] = DRIVERS) -> dict[str, frozenset[str]]:
    """By node, the drivers that publish devices there and are not known as those of GPUs."""
    found: dict[str, set[str]] = {}
    for slice_ in slices:
        for device in slice_.devices if slice_.driver not in drivers else ():
            found.setdefault(device.node, set()).add(slice_.driver)
    return {node: frozenset(names) for node, names in found.items()}


@dataclass(frozen=True, slots=True)
class _Pool:
    """The slices of a pool, put together."""

    devices: tuple[SliceDevice, ...]
    """Sorted by name. Of an incomplete pool those of all generations, for the newest may not tell of them yet."""
    missing: str
    """What is not there yet; empty when the pool is complete."""


def _pool(name: str, parts: Iterable[Slice]) -> _Pool:
    ordered = sorted(parts, key=lambda part: (part.generation, part.name))
    newest = [part for part in ordered if part.generation == ordered[-1].generation]
    count = newest[-1].count
    complete = len(newest) == count
    seen = {device.name: device for part in (newest if complete else ordered) for device in part.devices}
    missing = "" if complete else f"pool {name}: {len(newest)} of {count} slices of its newest generation are there"
    return _Pool(tuple(seen[name] for name in sorted(seen)), missing)


def _reason(
    device: SliceDevice, words: DriverWords, ours: bool, pool: _Pool, used: Collection[str], reserve_bytes: int
) -> str | None:
    """Why a GPU is not offered; '' where there is nothing to tell, as when another's claim has it."""
    name, partition = device.name, bool(device.attributes.get(words.profile) and device.counters)
    if name in used:
        return ""
    if "NoExecute" in device.taints or ("NoSchedule" in device.taints and not ours):
        return f"{name}: tainted"
    if device.shareable:
        return f"{name}: several claims may share it, so that its free memory cannot be known"
    if partition:
        return ""  # made on demand out of a GPU that is offered as a whole
    if any(other.name in used and other.counters & device.counters for other in pool.devices):
        return f"{name}: parts of it are allocated"
    if not device.attributes.get(words.product) or not device.attributes.get(words.uuid):
        return f"{name}: the driver states no {words.product} or no {words.uuid}"
    if device.capacity.get(words.memory, 0) <= reserve_bytes:
        return f"{name}: the driver states no {words.memory} beyond the reserve of {reserve_bytes // _MIB} MiB"
    return pool.missing if pool.missing and not ours else None


def _is_gpu(device: SliceDevice, words: DriverWords) -> bool:
    kind = device.attributes.get(words.kind)
    return kind is None or kind in words.gpu_kinds


def _as_gpu(device: SliceDevice, driver: str, words: DriverWords, reserve_bytes: int) -> Device:
    product, profile = device.attributes[words.product], device.attributes.get(words.profile)
    if profile and profile not in product:
        product = f"{product}-MIG-{profile}"
    return Device(
        name=device.name,
        node=device.node,
        kind=DeviceKind.GPU,
        type=device_type(product),
        memory_bytes=device.capacity[words.memory] - reserve_bytes,
        uuid=device.attributes[words.uuid],
        source=Source.RESOURCE_SLICES,
        driver=driver,
    )


def _device(body: Mapping[str, Any], node: str) -> SliceDevice:
    return SliceDevice(
        name=body["name"],
        node=node,
        attributes=dict(_attributes(body.get("attributes") or {})),
        capacity={_plain(name): whole(c["value"]) for name, c in (body.get("capacity") or {}).items()},
        taints=tuple(taint["effect"] for taint in body.get("taints") or ()),
        counters=frozenset(c["counterSet"] for c in body.get("consumesCounters") or ()),
        shareable=bool(body.get("allowMultipleAllocations")),
    )


def _attributes(attributes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        yield _plain(name), str(next(iter(value.values()), ""))


def _plain(name: str) -> str:
    return name.rpartition("/")[2]
