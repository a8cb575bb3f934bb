"""Which profiles are missing, and which device each is measured on."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import pairwise

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Missing, Want
from ensemble_operator.controller.ledger import Ledger
from ensemble_operator.controller.records import OwnPod
from ensemble_operator.inventory.cpu import MILLIS
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_operator.manifests.names import profiling_name
from ensemble_operator.manifests.resources import TORCH_BYTES
from ensemble_operator.planner.pairs import pair_type, possible_pair_types
from ensemble_operator.profiles.table import ProfileTable
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.sizes import GPU_CELL_BYTES

Pair = tuple[Device, Device]
"""Of one node, the scarce one first."""


def pod_of(want: Want) -> str:
    """Name of the pod that measures a profile."""
    model, device_type, precision, partition = want
    return profiling_name(model, device_type, precision, "", partition)


def missing_profiles(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    devices: Iterable[Device],
    table: ProfileTable,
    given_up: Mapping[str, str],
    pods: Mapping[str, OwnPod],
    pairs: Container[str],
) -> tuple[Missing, ...]:
    """Members without a single usable point on a type that they may run on, or on a pair that they may share.

    Whole cells need profiles of every type; pairs are measured where there is one, and are not waited for otherwise.
    Who writes a profile by hand for some batch sizes means those: the others are not measured.

    Args:
        spec: The ensemble's.
        digests: Model digest of each member, as far as known.
        devices: One of each kind that it may use.
        table: The profiles of its namespace.
        given_up: Pods that are not tried now, by name, and why.
        pods: Pods of ours in its namespace.
        pairs: Types of pairs of which one is free, or being measured on.
    """
    found: dict[Want, Missing] = {}
    for member in spec.members:
        digest = digests.get(member.name)
        able = [device for device in devices if device.kind in member.device_kinds]
        split = [type_ for type_ in possible_pair_types(able) if type_ in pairs and member.partition is not None]
        wholes = ((device.type, None) for device in able)
        for type_, partition in (*wholes, *((type_, member.partition) for type_ in split)):
            profile = table.get(digest, type_, member.precision.value, partition) if digest else None
            if profile is None or not any(p.batch_size in member.batch_sizes for p in profile.points):
                want = (digest or member.model.uri, type_, member.precision.value, partition)
                name = pod_of(want)
                pod = pods.get(name)
                trouble = pod.trouble if pod is not None else None
                one = Missing(want, member.name, None, given_up.get(name), pod is not None, trouble)
                found.setdefault(want, one)
    return tuple(found.values())


def free_pairs(left: Ledger, terms: Terms) -> dict[str, Pair]:
    """Of each type of pairs the first that is free; a GPU's has a core for itself besides."""
    found: dict[str, Pair] = {}
    for name, node in sorted(left.nodes.items()):
        if refusal(node, terms) is not None:
            continue
        kinds = left.kinds(name, terms, MILLIS if DeviceKind.GPU in terms.kinds else 0, GPU_CELL_BYTES + TORCH_BYTES)
        some = {kind: min(count, 1 if kind.kind is DeviceKind.GPU else 2) for kind, count in kinds.items()}
        here = left.draw(name, some, terms)
        cores = [device for device in here if device.kind is DeviceKind.CPU]
        gpus = [device for device in here if device.kind is not DeviceKind.CPU]
        for first, second in zip(gpus, cores[:1] * len(gpus), strict=False) if gpus else pairwise(cores):
            found.setdefault(pair_type(first.type, second.type), (first, second))
    return found


class Bench:
    """Hands out what is free to measure on: each device once, and one device for whatever many ensembles wait for."""

    def __init__(self, left: Ledger) -> None:
        """`left`: what nobody has and nobody waits for."""
        self._left = left.clone()
        self._chosen: dict[tuple[str, Want], Device] = {}
        self._pairs: dict[tuple[str, Want], Pair] = {}

    def device_for(self, namespace: str, want: Want, kinds: Iterable[Device], terms: Terms) -> Device | None:
        """The device that a profile is measured on; None where none is free.

        Args:
            namespace: The ensemble's; profiles are kept there.
            want: The profile.
            kinds: One device of each kind that the ensemble may use.
            terms: Which nodes it may use.
        """
        place = (namespace, want)
        if place not in self._chosen and (device := self._free(want[1], terms)) is not None:
            self._left.take([device])
            self._chosen[place] = device
        # Pods seldom request all the memory that comes with their cores: the scheduler may still find room.
        cores = (d for d in kinds if d.type == want[1] and d.kind is DeviceKind.CPU)
        return self._chosen.get(place) or next(cores, None)

    def pair_for(self, namespace: str, want: Want, terms: Terms) -> Pair | None:
        """The same of a pair; None also where the profile is of a single device."""
        place = (namespace, want)
        if place not in self._pairs and (pair := free_pairs(self._left, terms).get(want[1])) is not None:
            self._left.take(pair)
            self._pairs[place] = pair
        return self._pairs.get(place)

    def _free(self, kind: str, terms: Terms) -> Device | None:
        for name, node in sorted(self._left.nodes.items()):
            if refusal(node, terms) is None:
                of_kind = {k: 1 for k in self._left.kinds(name, terms) if k.type == kind}
                for device in self._left.draw(name, of_kind, terms):
                    return device
        return None
