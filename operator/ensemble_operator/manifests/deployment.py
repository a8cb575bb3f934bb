"""One copy of an ensemble as objects: for each shard a configuration and a pod."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.manifests import labels, models
from ensemble_operator.manifests.claim import claim_template
from ensemble_operator.manifests.models import CACHE
from ensemble_operator.manifests.names import config_map_name, pod_name, shards_name
from ensemble_operator.manifests.objects import Object, Owner, config_map, content_hash
from ensemble_operator.manifests.pod import (
    CONFIG_FILE,
    CONFIG_FOLDER,
    TERMINATION_LOG,
    among_shards,
    pod_spec,
    serving,
)
from ensemble_operator.manifests.resources import resources
from ensemble_operator.manifests.revision import copy_hash, revision
from ensemble_operator.manifests.runtime_config import PORT, Elsewhere, head_config, plain_member, shard_config
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.manifests.shards import Shard, shards
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import DeviceKind, Member, ModelSource, RuntimeConfig

STACKING = "stacking"


def spans_nodes(plans: Iterable[Plan]) -> bool:
    """Whether some copy has several shards: these need `shards_service` and a `token_secret`."""
    return any(len(shards(plan)) > 1 for plan in plans)


def copy_objects(
    ensemble: InferenceEnsemble,
    uid: str,
    copy: int,
    plan: Plan,
    digests: Mapping[str, str],
    settings: PodSettings,
) -> list[Object]:
    """What one copy needs: for each shard a ConfigMap, a claim where GPUs are asked for one by one, and a pod."""
    owner, own = Owner.of(ensemble, uid), revision(ensemble.spec, digests)
    return _Copy(ensemble, owner, copy, plan, digests, settings, own, copy_hash(plan, own)).objects()


@dataclass(frozen=True, slots=True)
class _Copy:
    """One copy, while it is being made into objects."""

    ensemble: InferenceEnsemble
    owner: Owner
    index: int
    plan: Plan
    digests: Mapping[str, str]
    settings: PodSettings
    revision: str
    hash: str

    def objects(self) -> list[Object]:
        head, *rest = shards(self.plan)
        service = shards_name(self.owner.name)
        others = [Elsewhere(shard, f"http://{self.pod_name(shard)}.{service}:{PORT}") for shard in rest]
        return [
            *self.shard(head, head_config(self.ensemble, self.digests, self.plan, head, others)),
            *(o for s in rest for o in self.shard(s, shard_config(self.ensemble, self.digests, self.plan, s))),
        ]

    def pod_name(self, shard: Shard) -> str:
        return pod_name(self.owner.name, self.hash, self.index, shard.index)

    def shard(self, shard: Shard, config: RuntimeConfig) -> list[Object]:
        """ConfigMap, claim and pod of one shard."""
        fetches = models.fetches(_fetched(self.ensemble, shard, self.digests))
        data = {CONFIG_FILE: config.model_dump_json(by_alias=True, exclude_defaults=True)}
        data |= {fetch.file: json.dumps(fetch.document()) for fetch in fetches}
        hash_ = content_hash(data)
        name, config_name = self.pod_name(shard), config_map_name(self.owner.name, hash_)
        single = [device for device in shard.of(DeviceKind.GPU) if device.driver is not None]
        image = self.settings.image(self.ensemble, shard.devices)
        spec = pod_spec(
            node=_node(shard),
            resources=resources(shard, self.plan, config, torch=image == self.settings.image_full),
            image=image,
            command=["serve", *_FILES, *(["--fetched"] if fetches else []), f"{CONFIG_FOLDER}/{CONFIG_FILE}"],
            config_map=config_name,
            placement=self.ensemble.spec.placement,
            settings=self.settings,
            claims=models.claims(_sources(self.ensemble)),
            fetches=fetches,
            uses_gpus=bool(shard.of(DeviceKind.GPU)),
            claim_template=name if single else None,
        )
        spec = serving(spec, self.ensemble.spec.serving)
        if config.remotes or config.shard:
            spec = among_shards(spec, self.owner.name, name)
        notes = labels.holding(shard.devices, shard.cells)
        plain = labels.common(self.owner.name)
        metadata = self.owner.metadata(name, plain | self._marks(shard, hash_), notes)
        claim = [claim_template(self.owner.metadata(name, plain), single, self.settings)] if single else []
        return [
            config_map(self.owner.metadata(config_name, plain | {labels.CONFIG: hash_}), data),
            *claim,
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        ]

    def _marks(self, shard: Shard, config_hash: str) -> labels.Labels:
        return {
            labels.PLAN: self.plan.digest,
            labels.REVISION: self.revision,
            labels.COPY: str(self.index),
            labels.SHARD: str(shard.index),
            labels.ROLE: labels.HEAD if shard.head else labels.REMOTE,
            labels.CONFIG: config_hash,
        }


_FILES = ("--cache", CACHE, "--termination-message", TERMINATION_LOG)


def _node(shard: Shard) -> str | None:
    """The node that the plan names; simulated devices are on none."""
    real = any(device.kind is not DeviceKind.SIMULATED for device in shard.devices)
    return shard.node if real else None


def _sources(ensemble: InferenceEnsemble) -> list[ModelSource]:
    stacking = ensemble.spec.combination.model
    return [member.model for member in ensemble.spec.members] + ([stacking] if stacking else [])


def _fetched(ensemble: InferenceEnsemble, shard: Shard, digests: Mapping[str, str]) -> list[Member]:
    """The members whose files the shard loads: a simulated device needs none."""
    loaded = {name for device, name, _ in shard.cells if device.kind is not DeviceKind.SIMULATED}
    found = [plain_member(m, digests[m.name]) for m in ensemble.spec.members if m.name in loaded]
    stacking = ensemble.spec.combination.model if shard.head else None
    return found + ([Member(name=STACKING, model=stacking)] if stacking else [])
