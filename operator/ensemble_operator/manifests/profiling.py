"""The short-lived pod that measures one member on one type of device, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ensemble_operator.api.ensemble import InferenceEnsemble, MemberSpec
from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.labels import resource_of
from ensemble_operator.manifests import labels, models
from ensemble_operator.manifests.claim import claim_template
from ensemble_operator.manifests.models import CACHE
from ensemble_operator.manifests.names import profiling_name
from ensemble_operator.manifests.objects import Object, Owner, config_map
from ensemble_operator.manifests.pod import CONFIG_FOLDER, TERMINATION_LOG, pod_spec
from ensemble_operator.manifests.resources import (
    GPU_BESIDE_MILLIS,
    GPU_MILLIS,
    MIB,
    TORCH_BYTES,
    Resources,
)
from ensemble_operator.manifests.runtime_config import plain_device
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.planner.pairs import pair_type
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind, Member, core_count
from ensemble_runtime.report import unpack
from ensemble_runtime.sizes import GPU_CELL_BYTES

REQUEST_FILE = "request.json"
DEADLINE_SECONDS = 3600
_SHARED_BYTES = 64 * MIB


def profiling_objects(
    ensemble: InferenceEnsemble,
    uid: str,
    member: MemberSpec,
    device: Device,
    settings: PodSettings,
    *,
    second: Device | None = None,
    digest: str | None = None,
    node_kind: str = "",
    batch_sizes: Iterable[int] | None = None,
    deadline_seconds: int = DEADLINE_SECONDS,
) -> list[Object]:
    """A ConfigMap with the request and the pod, under one name; and a claim where the GPU has a UUID.

    Args:
        ensemble: Owns them; its inputs and outputs are the member's.
        uid: Of its object.
        member: What to measure.
        device: Where: the pod holds it for the time.
        settings: The installation's.
        second: Cores beside the device, of the same node: then what the two cost together is measured.
        digest: The model's, if it is known; otherwise the measurement finds it out.
        node_kind: Tells kinds of nodes apart on which one device type performs differently.
        batch_sizes: Those that are missing; by default all that the member permits.
        deadline_seconds: Then the pod is ended; what it has measured by then is kept.
    """
    owner = Owner.of(ensemble, uid)
    type_ = device.type if second is None else pair_type(device.type, second.type)
    partition = None if second is None else member.partition
    name = profiling_name(digest or member.model.uri, type_, member.precision.value, node_kind, partition)
    marks = labels.common(owner.name, labels.PROFILER)
    single = device.driver is not None
    image = settings.image(ensemble, [device])
    spec = pod_spec(
        node=device.node,
        resources=_resources(device) if second is None else _of_both(device, second),
        image=image,
        command=[
            "profile" if second is None else "partition",
            "--cache",
            CACHE,
            "--termination-message",
            TERMINATION_LOG,
            f"{CONFIG_FOLDER}/{REQUEST_FILE}",
        ],
        config_map=name,
        placement=ensemble.spec.placement,
        settings=settings,
        claims=models.claims([member.model]),
        secret=member.model.secret_name,
        uses_gpus=device.kind is DeviceKind.GPU,
        claim_template=name if single else None,
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": owner.metadata(name, marks, labels.holding([device, *([second] if second else [])], [])),
        "spec": spec | {"restartPolicy": "Never", "activeDeadlineSeconds": deadline_seconds},
    }
    sizes = tuple(batch_sizes or member.batch_sizes)
    wanted = _request(ensemble, member, digest, device, second, sizes)
    request = config_map(owner.metadata(name, marks), {REQUEST_FILE: wanted})
    claim = [claim_template(owner.metadata(name, marks), [device], settings)] if single else []
    return [request, *claim, pod]


def measured(message: str) -> tuple[Profile, ...]:
    """The profiles that a profiling pod's termination message holds, also one that was cut off in its course.

    Raises:
        ValueError: It holds none; the message is then the reason.
    """
    points: dict[tuple[str, str, str], dict[int, Point]] = {}
    try:
        for record in unpack(message):
            key = (str(record["digest"]), str(record["deviceType"]), str(record["precision"]))
            costs = float(record["seconds"]), int(record["memoryBytes"]), int(record.get("secondBytes", 0))
            point = Point(int(record["batchSize"]), *costs)
            points.setdefault(key, {})[point.batch_size] = point
    except (KeyError, TypeError) as error:
        raise ValueError(f"no profile: {error!r}") from error
    return tuple(Profile(*key, tuple(found[size] for size in sorted(found))) for key, found in points.items())


def _request(
    ensemble: InferenceEnsemble,
    member: MemberSpec,
    digest: str | None,
    device: Device,
    second: Device | None,
    sizes: tuple[int, ...],
) -> str:
    model = models.in_pod(member.model)
    model = model.model_copy(update={"sha256": digest or model.sha256})
    plain = Member(name=member.name, model=model, precision=member.precision)
    spec = ensemble.spec
    inputs = [tensor.model_dump(mode="json", by_alias=True) for tensor in spec.inputs]
    both: dict[str, Any] = {
        "devices": [_slot(each) for each in (device, second) if each is not None],
        "batchSizes": list(sizes),
    }
    if second is None:
        members = [plain.model_dump(mode="json", by_alias=True, exclude_defaults=True)]
        outputs = [tensor.model_dump(mode="json", by_alias=True) for tensor in spec.outputs]
        return json.dumps({"members": members, "inputs": inputs, "outputs": outputs, **both})
    split = plain.model_copy(update={"partition": member.partition})
    wanted = split.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps({"member": wanted, "inputs": inputs, **both, "chart": False})


def _slot(device: Device) -> dict[str, Any]:
    slot = plain_device(device)
    if device.kind is DeviceKind.CPU:
        slot = slot.model_copy(update={"cores": (), "memory_bytes": 1})  # what it needs is what is to be found out
    return slot.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _resources(device: Device) -> Resources:
    """The device; with a CPU device all the memory that comes with it, since the need is not known yet."""
    if device.kind is DeviceKind.CPU:
        return Resources(1000 * core_count(device.type), device.memory_bytes // MIB * MIB, _SHARED_BYTES, (), True)
    gpus = ((resource_of(device), 1),) if device.driver is None else ()
    return Resources(GPU_MILLIS, GPU_CELL_BYTES + TORCH_BYTES, _SHARED_BYTES, gpus, False, memory_limited=False)


def _of_both(device: Device, second: Device) -> Resources:
    """A pair; both get cores of their own, as in serving, a GPU one for what drives it."""
    cores = _resources(second)
    first = _resources(device)
    return Resources(
        cpu_millis=cores.cpu_millis + (first.cpu_millis if device.kind is DeviceKind.CPU else GPU_BESIDE_MILLIS),
        memory_bytes=cores.memory_bytes + first.memory_bytes,
        shared_memory_bytes=_SHARED_BYTES,
        gpus=first.gpus,
        exclusive=True,
    )
