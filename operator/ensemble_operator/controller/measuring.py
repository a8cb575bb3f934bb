"""Which profiles are missing, and which device each is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Missing, Want
from ensemble_operator.controller.ledger import Ledger
from ensemble_operator.controller.records import OwnPod
from ensemble_operator.inventory.device import Device
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
    pods: Mapping[str, OwnPod],
) -> tuple[Missing, ...]:
    """Members without a single usable point on a type that they may run on.

    Who writes a profile by hand for some batch sizes means those: the others are not measured.

    Args:
        spec: The ensemble's.
        digests: Model digest of each member, as far as known.
        devices: One of each kind that it may use.
        table: The profiles of its namespace.
        given_up: Pods that are not tried now, by name, and why.
        pods: Pods of ours in its namespace.
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
                name = pod_of(want)
                pod = pods.get(name)
                trouble = pod.trouble if pod is not None else None
                one = Missing(want, member.name, None, given_up.get(name), pod is not None, trouble)
                found.setdefault(want, one)
    return tuple(found.values())


class Bench:
    """Hands out what is free to measure on: each device once, and one device for whatever many ensembles wait for."""

    def __init__(self, left: Ledger) -> None:
        """`left`: what nobody has and nobody waits for."""
        self._left = left.clone()
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
        if place not in self._chosen and (device := self._free(want[1], terms)) is not None:
            self._left.take([device])
            self._chosen[place] = device
        # Pods seldom request all the memory that comes with their cores: the scheduler may still find room.
        cores = (d for d in kinds if d.type == want[1] and d.kind is DeviceKind.CPU)
        return self._chosen.get(place) or next(cores, None)

    def _free(self, kind: str, terms: Terms) -> Device | None:
        for name, node in sorted(self._left.nodes.items()):
            if refusal(node, terms) is None:
                of_kind = {k: 1 for k in self._left.kinds(name, terms) if k.type == kind}
                for device in self._left.draw(name, of_kind, terms):
                    return device
        return None
