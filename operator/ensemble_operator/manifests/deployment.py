"""All objects of an ensemble: what everybody else calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.manifests import labels, models
from ensemble_operator.manifests.budget import budget
from ensemble_operator.manifests.claim import claim_template
from ensemble_operator.manifests.models import CACHE
from ensemble_operator.manifests.names import config_map_name, pod_name
from ensemble_operator.manifests.objects import Object, Owner, config_map, content_hash
from ensemble_operator.manifests.pod import CONFIG_FILE, CONFIG_FOLDER, TERMINATION_LOG, pod_spec, serving
from ensemble_operator.manifests.resources import resources
from ensemble_operator.manifests.revision import copy_hash, revision
from ensemble_operator.manifests.runtime_config import plain_member, shard_config
from ensemble_operator.manifests.service import service
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.manifests.shards import Shard, shards
from ensemble_operator.planner.plan import Plan
from ensemble_runtime.config import DeviceKind, Member, ModelSource
from ensemble_runtime.errors import ManifestError

STACKING = "stacking"


def children(
    ensemble: InferenceEnsemble,
    uid: str,
    copies: Sequence[Plan] | Mapping[int, Plan],
    digests: Mapping[str, str],
    settings: PodSettings,
) -> list[Object]:
    """Everything that an ensemble needs to serve, the pods last.

    Args:
        ensemble: What is to be served.
        uid: Of the ensemble's object: the owner of all.
        copies: The plan of each copy, by its number.
        digests: Model digest of each member.
        settings: The installation's.

    Raises:
        ManifestError: A plan asks for more than pods can be made of.
    """
    owner = Owner.of(ensemble, uid)
    plans = dict(copies if isinstance(copies, Mapping) else enumerate(copies))
    parts = [
        part for copy in sorted(plans) for part in copy_objects(ensemble, uid, copy, plans[copy], digests, settings)
    ]
    shared = [service(owner, revision(ensemble.spec, digests)), budget(owner, len(plans))]
    return sorted([o for o in shared if o] + _once(parts), key=lambda o: o["kind"] == "Pod")


def copy_objects(
    ensemble: InferenceEnsemble,
    uid: str,
    copy: int,
    plan: Plan,
    digests: Mapping[str, str],
    settings: PodSettings,
) -> list[Object]:
    """What one copy needs: for each shard a ConfigMap, a claim where GPUs are asked for one by one, and a pod."""
    parts = shards(plan)
    if len(parts) > 1:
        # The one place that says so, until the runtime's configuration can name remote shards.
        nodes = ", ".join(shard.node for shard in parts)
        raise ManifestError(f"the plan of copy {copy} needs {len(parts)} nodes ({nodes}); a copy runs on one node")
    return [o for shard in parts for o in _shard_objects(ensemble, uid, copy, plan, shard, digests, settings)]


def _shard_objects(
    ensemble: InferenceEnsemble,
    uid: str,
    copy: int,
    plan: Plan,
    shard: Shard,
    digests: Mapping[str, str],
    settings: PodSettings,
) -> list[Object]:
    owner = Owner.of(ensemble, uid)
    config = shard_config(ensemble, digests, plan, shard)
    fetches = models.fetches(_fetched(ensemble, shard, digests))
    data = {CONFIG_FILE: config.model_dump_json(by_alias=True, exclude_defaults=True)}
    data |= {fetch.file: json.dumps(fetch.document()) for fetch in fetches}

    own = revision(ensemble.spec, digests)
    name = pod_name(owner.name, copy_hash(plan, own), copy, shard.index)
    config_name = config_map_name(owner.name, hash_ := content_hash(data))
    marks = labels.common(owner.name) | {
        labels.PLAN: plan.digest,
        labels.REVISION: own,
        labels.COPY: str(copy),
        labels.SHARD: str(shard.index),
        labels.ROLE: labels.HEAD if shard.head else labels.REMOTE,
        labels.CONFIG: hash_,
    }
    single = [device for device in shard.of(DeviceKind.GPU) if device.uuid is not None]
    image = settings.image(ensemble, shard.devices)
    spec = pod_spec(
        node=_node(shard),
        resources=resources(shard, plan, config, torch=image == settings.image_full),
        image=image,
        command=["serve", "--cache", CACHE, "--termination-message", TERMINATION_LOG, f"{CONFIG_FOLDER}/{CONFIG_FILE}"],
        config_map=config_name,
        placement=ensemble.spec.placement,
        settings=settings,
        claims=models.claims(_sources(ensemble)),
        fetches=fetches,
        uses_gpus=bool(shard.of(DeviceKind.GPU)),
        claim_template=name if single else None,
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": owner.metadata(name, marks, labels.holding(shard.devices, shard.cells)),
        "spec": serving(spec, ensemble.spec.serving),
    }
    plain = labels.common(owner.name)
    written = config_map(owner.metadata(config_name, plain | {labels.CONFIG: hash_}), data)
    claim = [claim_template(owner.metadata(name, plain), single, settings)] if single else []
    return [written, *claim, pod]


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


def _once(objects: Sequence[Object]) -> list[Object]:
    """Copies with the same configuration share its ConfigMap."""
    return list({(o["kind"], o["metadata"]["name"]): o for o in objects}.values())
