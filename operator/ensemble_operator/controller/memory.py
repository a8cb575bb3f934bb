"""What decisions remember from cycle to cycle: what is slow to find out, and what was granted."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import replace

from pydantic import ValidationError

from ensemble_operator.api.ensemble import EnsembleSpec, InferenceEnsemble
from ensemble_operator.api.faults import explain
from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.controller.adopted import Adopted, adopted
from ensemble_operator.controller.allotment import Grant
from ensemble_operator.controller.placing import Copy
from ensemble_operator.controller.records import EnsembleRecord, OwnPod, ProfileRecord
from ensemble_operator.controller.solver import Solver
from ensemble_operator.controller.wish import Wish
from ensemble_operator.controller.world import World
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Inventory
from ensemble_operator.inventory.pod_record import broken_devices, held_devices
from ensemble_operator.inventory.slices import DRIVERS, DriverWords
from ensemble_operator.inventory.survey import inventory
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.edition import edition_hash
from ensemble_operator.manifests.question import question
from ensemble_operator.manifests.revision import revision
from ensemble_operator.planner.pairs import is_pair
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.profiles.table import ProfileTable, written


class Memory:
    """Answers of the cycles before, each as long as what it was made from does not change."""

    def __init__(self, gpu_reserve_bytes: int, dra_drivers: Mapping[str, DriverWords]) -> None:
        """Nothing is remembered yet.

        Args:
            gpu_reserve_bytes: Memory of each GPU that no member gets.
            dra_drivers: Drivers that publish GPUs, besides those that are known anyway.
        """
        self._reserve = gpu_reserve_bytes
        self._drivers = {**DRIVERS, **dra_drivers}
        self._solver = Solver()
        self._parsed: dict[str, tuple[str, EnsembleSpec | str]] = {}
        self._restored: dict[str, tuple[str, EnsembleSpec | str]] = {}
        self._adopted: dict[str, tuple[OwnPod, Adopted | None]] = {}
        self._granted: dict[str, tuple[str, dict[int, Copy]]] = {}
        self._takers: dict[str, str | None] = {}
        self._hashes: dict[str, tuple[object, tuple[str, str]]] = {}
        self._problems: dict[str, tuple[object, Problem]] = {}
        self._tables: dict[str, tuple[tuple[ProfileRecord, ...], ProfileTable, dict[str, str]]] = {}

    def spec_of(self, record: EnsembleRecord) -> EnsembleSpec | str:
        """The spec, or what is wrong with it."""
        known = self._parsed.get(record.uid)
        if known is None or known[0] != record.document:
            known = self._parsed[record.uid] = (record.document, _parse(record))
        return known[1]

    def restored(self, record: EnsembleRecord, document: str) -> EnsembleSpec | str:
        """The spec of an earlier edition of an ensemble, or what this operator finds wrong with it."""
        known = self._restored.get(record.uid)
        if known is None or known[0] != document:
            known = self._restored[record.uid] = (document, _parse(replace(record, document=document)))
        return known[1]

    def adopted(self, uid: str, pod: OwnPod) -> Adopted | None:
        """What a pod of ours says of itself; None where it is not as we write it."""
        known = self._adopted.get(uid)
        if known is None or known[0] is not pod:
            known = self._adopted[uid] = (pod, adopted(pod))
        return known[1]

    def profiles_of(self, namespace: str, records: tuple[ProfileRecord, ...]) -> tuple[ProfileTable, dict[str, str]]:
        """The profiles of a namespace, and the digests of files by where they came from."""
        known = self._tables.get(namespace)
        if known is None or known[0] != records:
            table = written(record.document for record in records if not _outdated(record.document))
            digests = {r.uri: r.document.spec.model.sha256 for r in records if r.uri is not None}
            known = self._tables[namespace] = (records, table, digests)
        return known[1], known[2]

    def problem_of(self, wish: Wish, devices: tuple[Device, ...], table: ProfileTable) -> Problem:
        """The planner's question on devices of these types; the very same object as long as nothing changes."""
        asked = (wish.record.document, tuple(wish.digests.items()), devices, table)
        known = self._problems.get(wish.record.uid)
        if known is None or known[0] != asked:
            problem = question(wish.spec, wish.digests, devices, table, pairs=True)
            known = self._problems[wish.record.uid] = (asked, problem)
        return known[1]

    def hashes(self, record: EnsembleRecord, spec: EnsembleSpec, digests: Mapping[str, str]) -> tuple[str, str]:
        """Revision and edition of a spec."""
        asked = (record.document, tuple(digests.items()))
        known = self._hashes.get(record.uid)
        if known is None or known[0] != asked:
            hashes = revision(spec, digests), edition_hash(spec, digests)
            known = self._hashes[record.uid] = (asked, hashes)
        return known[1]

    def granted(self, uid: str) -> tuple[str, dict[int, Copy]] | None:
        """What was granted in the last round, and for which edition."""
        return self._granted.get(uid)

    def grant(self, uid: str, edition: str, copies: dict[int, Copy]) -> None:
        """Remember it until the next round."""
        self._granted[uid] = (edition, copies)

    def release(self, uid: str) -> None:
        """An ensemble holds nothing any more."""
        self._granted.pop(uid, None)
        self._takers[uid] = None

    def taker(self, record: EnsembleRecord, grant: Grant, present: Container[str]) -> str | None:
        """Who took devices from an ensemble that has waited ever since; `present`: who may still hold them.

        No pod tells of it: an operator that starts takes it from what the one before it said. Nothing is planned by it.
        """
        if record.uid not in self._takers:
            self._takers[record.uid] = json.loads(record.status).get("preemptedBy")
        known = self._takers[record.uid]
        still = known if grant.waiting is not None and known in present else None
        self._takers[record.uid] = taker = grant.preempted_by or still
        return taker

    def plan_until(self, moment: float) -> None:
        """When planning has to come to an end in this round, of the monotonic clock."""
        self._solver.until = moment

    def solve(self, problem: Problem) -> Plan:
        """The planner."""
        return self._solver(problem)

    def survey(self, world: World) -> Inventory:
        """What the cluster has."""
        return inventory(
            world.nodes,
            world.uses,
            world.slices,
            world.claims,
            world.static,
            held_devices(world.uses),
            reserve_bytes=self._reserve,
            drivers=self._drivers,
            broken=broken_devices(world.uses),
        )

    def forget_all_but(self, uids: set[str], pods: set[str]) -> None:
        """Let go of what belonged to objects that are gone."""
        for memory in (self._parsed, self._restored, self._granted, self._takers, self._hashes, self._problems):
            for uid in memory.keys() - uids:
                del memory[uid]
        for uid in self._adopted.keys() - pods:
            del self._adopted[uid]


def _parse(record: EnsembleRecord) -> EnsembleSpec | str:
    """The spec of a record, or what is wrong with it."""
    try:
        return InferenceEnsemble.model_validate(record.manifest()).spec
    except ValidationError as error:
        return "; ".join(str(fault) for fault in explain(error, InferenceEnsemble))


def _outdated(document: ModelProfile) -> bool:
    """Whether a pair was measured before profiles said for what: it may have been for something else."""
    measured = document.metadata.labels.get("app.kubernetes.io/managed-by") == labels.MANAGER
    return measured and document.spec.partition is None and is_pair(document.spec.device_type)
