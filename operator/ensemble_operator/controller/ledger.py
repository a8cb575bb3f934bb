"""Who has what of the inventory while devices are being handed out."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from ensemble_operator.inventory.cpu import MILLIS, core_memory, cores_of, cpu_devices
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory, Node
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_runtime.config import DeviceKind


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """What makes devices interchangeable, but for the node."""

    kind: DeviceKind
    type: str
    memory_bytes: int
    pinnable: bool = False
    """Whether it can be asked for by name."""


Offer = frozenset[tuple[Kind, int]]
"""How many devices of each kind a node offers; nodes with equal offers are as good as each other."""


def kind_of(device: Device) -> Kind:
    """The kind of a device."""
    return Kind(device.kind, device.type, device.memory_bytes, device.uuid is not None)


class Ledger:
    """What is free on each node. GPUs are single things; CPU devices are cut out of cores when somebody takes them."""

    def __init__(self, inventory: Inventory) -> None:
        self.nodes: Mapping[str, Node] = {node.name: node for node in inventory.nodes}
        self._gpus = {node.name: {device.name: device for device in node.devices} for node in inventory.nodes}
        self._kinds = {name: Counter(map(kind_of, gpus.values())) for name, gpus in self._gpus.items()}
        self._millis = {node.name: node.cpu_free_millis for node in inventory.nodes}
        self._bytes = {node.name: node.memory_free_bytes for node in inventory.nodes}
        self._cpu_names: dict[str, set[str]] = {node.name: set() for node in inventory.nodes}
        self._offers: dict[Hashable, dict[str, Offer]] = {}
        self._stale: dict[Hashable, set[str]] = {}

    def clone(self) -> Ledger:
        """A ledger to try things on."""
        other = copy.copy(self)
        other._gpus = {name: dict(gpus) for name, gpus in self._gpus.items()}
        other._kinds = {name: Counter(kinds) for name, kinds in self._kinds.items()}
        other._millis, other._bytes = dict(self._millis), dict(self._bytes)
        other._cpu_names = {name: set(names) for name, names in self._cpu_names.items()}
        other._offers = {key: dict(offers) for key, offers in self._offers.items()}
        other._stale = {key: set(nodes) for key, nodes in self._stale.items()}
        return other

    def claim(self, devices: Iterable[Device]) -> tuple[Device, ...]:
        """Take what is free of these devices; a CPU device also where cores ran short after it was given.

        Returns:
            The devices taken, as the inventory has them now.
        """
        got = []
        for device in devices:
            if device.node not in self.nodes:
                continue
            if device.kind is DeviceKind.CPU:
                if device.name in self._cpu_names[device.node]:
                    continue
                self.take([device])
                got.append(device)
            elif (there := self._gpus[device.node].get(device.name)) is not None and _same(there, device):
                self.take([there])
                got.append(there)
        return tuple(got)

    def has(self, device: Device) -> bool:
        """Whether a device is free; of cores, whether their node is there."""
        cpu = device.kind is DeviceKind.CPU
        return device.node in self.nodes and (cpu or device.name in self._gpus[device.node])

    def take(self, devices: Iterable[Device]) -> None:
        """Take devices that are free."""
        for device in devices:
            if device.kind is DeviceKind.CPU:
                self._cores(device, -1)
                self._cpu_names[device.node].add(device.name)
            else:
                del self._gpus[device.node][device.name]
                self._kinds[device.node][kind_of(device)] -= 1
            self._changed(device.node)

    def give(self, devices: Iterable[Device]) -> None:
        """Give devices back."""
        for device in devices:
            if device.kind is DeviceKind.CPU:
                self._cores(device, 1)
                self._cpu_names[device.node].discard(device.name)
            else:
                self._gpus[device.node][device.name] = device
                self._kinds[device.node][kind_of(device)] += 1
            self._changed(device.node)

    def book(self, node: str, millis: int, size: int) -> None:
        """Take cores (in thousandths) and bytes that a pod wants besides its devices; negative: give them back."""
        self._millis[node] -= millis
        self._bytes[node] -= size
        self._changed(node)

    def room(self, node: str, millis: int, size: int) -> bool:
        """Whether a node has so much left."""
        return self._millis[node] >= millis and self._bytes[node] >= size

    def kinds(self, node: str, terms: Terms, millis: int = 0, size: int = 0, gpu_millis: int = 0) -> Counter[Kind]:
        """How many devices of each kind are free on a node, after so many thousandths of cores and bytes for a pod.

        Of GPUs at most as many as there are `gpu_millis` thousandths of a core for.
        """
        found: Counter[Kind] = Counter()
        driven = max(0, self._millis[node] - millis) // gpu_millis if gpu_millis else None
        if DeviceKind.GPU in terms.kinds:
            for kind, count in self._kinds[node].items():
                count = count if driven is None else min(count, driven)
                if count > 0 and (kind.pinnable or not terms.pinned):
                    found[kind] = count
        memory = core_memory(self.nodes[node]) * terms.cores_per_device if DeviceKind.CPU in terms.kinds else 0
        if memory > 0:
            cores = (self._millis[node] - millis) // (MILLIS * terms.cores_per_device)
            count = min(cores, (self._bytes[node] - size) // memory)
            if count > 0:
                found[Kind(DeviceKind.CPU, f"cpu-{terms.cores_per_device}", memory)] = count
        return found

    def offers(self, terms: Terms, millis: int, size: int, gpu_millis: int = 0) -> Mapping[str, Offer]:
        """What each node offers that may start a pod which wants so many thousandths of a core and bytes besides.

        Remembered: of a thousand nodes, few change between one ensemble and the next.
        """
        key = (terms.key, millis, size, gpu_millis)
        offers = self._offers.setdefault(key, {})
        for name in self._stale.setdefault(key, set(self.nodes)):
            node = self.nodes[name]
            open_ = self.room(name, millis, size) and refusal(node, terms) is None
            kinds = self.kinds(name, terms, millis, size, gpu_millis) if open_ else None
            if kinds:
                offers[name] = frozenset(kinds.items())
            else:
                offers.pop(name, None)
        self._stale[key].clear()
        return offers

    def draw(self, node: str, wanted: Mapping[Kind, int], terms: Terms) -> list[Device]:
        """Free devices of the kinds wanted, lowest names first; they are not taken yet."""
        drawn: list[Device] = []
        for kind, count in sorted(wanted.items()):
            if kind.kind is DeviceKind.CPU:
                held = self._cpu_names[node]
                own, cores = self.nodes[node], terms.cores_per_device
                room = {"free_millis": count * cores * MILLIS, "free_bytes": count * kind.memory_bytes}
                drawn += cpu_devices(own, cores, **room, held=held, limit=count)
            else:
                alike = (device for device in self._gpus[node].values() if kind_of(device) == kind)
                drawn += sorted(alike, key=lambda device: _natural(device.name))[:count]
        return drawn

    def free_gpus(self) -> tuple[Device, ...]:
        """All GPUs that are free, by node and name."""
        return tuple(self._gpus[node][name] for node in sorted(self._gpus) for name in sorted(self._gpus[node]))

    def _changed(self, node: str) -> None:
        for stale in self._stale.values():
            stale.add(node)

    def _cores(self, device: Device, sign: int) -> None:
        self._millis[device.node] += sign * cores_of(device) * MILLIS
        self._bytes[device.node] += sign * device.memory_bytes


def _same(there: Device, device: Device) -> bool:
    """Whether it is the GPU that was given, and not another that bears its name by now."""
    return (there.type, there.uuid) == (device.type, device.uuid)


def _natural(name: str) -> tuple[str, int]:
    stem = re.sub(r"\d+$", "", name)
    return stem, int(name[len(stem) :] or 0)
