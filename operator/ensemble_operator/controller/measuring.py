"""Which profiles are missing, and which device each is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Missing, Want
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.terms import Terms, refusal
from ensemble_operator.manifests.names import profiling_name
from ensemble_operator.profiles.table import ProfileTable
from ensemble_runtime.config import DeviceKind


def pod_of(want: Want) -> str:
    """Name of the pod that measures a profile."""
    return profiling_name(*want, "")


def missing_profiles(
    spec: EnsembleSpec,
    digests: Mapping[str, str],
    devices: Iterable[Device],
    table: ProfileTable,
    given_up: Mapping[str, str],
) -> tuple[Missing, ...]:
    """Members without a single usable point on a type that they may run on.

    Who writes a profile by hand for some batch sizes means those: the others are not measured.

    Args:
        spec: The ensemble's.
        digests: Model digest of each member, as far as known.
        devices: One of each kind that it may use.
        table: The profiles of its namespace.
        given_up: Pods that are not tried now, by name, and why.
    """
    found: dict[Want, Missing] = {}
    for member in spec.members:
        digest = digests.get(member.name)
        for device in devices:
            if device.kind not in member.device_kinds:
                continue
            profile = table.get(digest, device.type, member.precision.value) if digest else None
            if profile is None or not any(p.batch_size in member.batch_sizes for p in profile.points):
                want = (digest or member.model.uri, device.type, member.precision.value)
                found.setdefault(want, Missing(want, member.name, None, given_up.get(pod_of(want))))
    return tuple(found.values())


class Bench:
    """Hands out what is free to measure on: each device once, and one device for whatever many ensembles wait for."""

    def __init__(self, inventory: Inventory, free: Iterable[Device]) -> None:
        """`free`: GPUs that nobody has and nobody waits for."""
        self._nodes = {node.name: node for node in inventory.nodes}
        self._left = {(d.node, d.name): d for d in free}
        self._chosen: dict[tuple[str, Want], Device] = {}

    def device_for(self, namespace: str, want: Want, kinds: Iterable[Device], terms: Terms) -> Device | None:
        """The device that a profile is measured on; None where none is free.

        Args:
            namespace: The ensemble's; profiles are kept there.
            want: The profile.
            kinds: One device of each kind that the ensemble may use.
            terms: Which nodes it may use.
        """
        place = (namespace, want)
        if place not in self._chosen and (device := self._free(want[1], kinds, terms)) is not None:
            self._left.pop((device.node, device.name), None)
            self._chosen[place] = device
        return self._chosen.get(place)

    def _free(self, kind: str, kinds: Iterable[Device], terms: Terms) -> Device | None:
        wanted = next((d for d in kinds if d.type == kind), None)
        if wanted is None or wanted.kind is DeviceKind.CPU:
            return wanted  # cores are cut out of any node that has them; the scheduler has the last word
        free = (d for d in self._left.values() if d.type == kind)
        return next((d for d in free if refusal(self._nodes[d.node], terms) is None), None)
