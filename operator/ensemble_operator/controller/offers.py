"""What the cluster has for an ensemble; ensembles of the same terms are told the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Supply
from ensemble_operator.controller.ledger import Ledger
from ensemble_operator.controller.placing import catalogue
from ensemble_operator.controller.wish import terms_of
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.simulated import simulated_devices
from ensemble_operator.inventory.terms import Terms, refusal


@dataclass(frozen=True, slots=True)
class Offered:
    """What there is for ensembles of the same terms."""

    kinds: tuple[Device, ...]
    """One device of each kind."""
    supply: Supply


class Offers:
    """What there is for whom, in one round of decisions."""

    def __init__(self, inventory: Inventory, everything: Ledger, held: Iterable[Device]) -> None:
        """Nothing is looked up yet.

        Args:
            inventory: What the cluster has.
            everything: The same as a ledger from which nothing is taken.
            held: The devices of our pods.
        """
        self._inventory, self._everything, self._held = inventory, everything, tuple(held)
        self._known: dict[object, Offered] = {}

    def of(self, spec: EnsembleSpec) -> Offered:
        """What there is for an ensemble."""
        if spec.devices.simulated:
            devices = simulated_devices(spec.devices.simulated)
            return Offered(devices, Supply(len(devices), len(devices), tuple(sorted({d.source for d in devices}))))
        terms = terms_of(spec)
        key = (terms.kinds, terms.cores_per_device, spec.placement.model_dump_json())
        if key not in self._known:
            self._known[key] = self._found(terms)
        return self._known[key]

    def _found(self, terms: Terms) -> Offered:
        open_nodes = [node for node in self._inventory.nodes if refusal(node, terms) is None]
        kinds = tuple(catalogue(self._inventory, terms))
        count = sum(self._everything.kinds(node.name, terms).total() for node in open_nodes)
        types, names = {device.type for device in kinds}, {node.name for node in open_nodes}
        used = {(d.node, d.name) for d in self._held if d.type in types and d.node in names}
        return Offered(kinds, Supply(count, max(0, count - len(used)), tuple(sorted({d.source for d in kinds}))))
