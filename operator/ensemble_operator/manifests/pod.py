"""The pod of a shard: one for each node and copy, holding whole devices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ensemble_operator.api.placement import Placement
from ensemble_operator.manifests import models
from ensemble_operator.manifests.models import CACHE, Fetch
from ensemble_operator.manifests.names import shards_name, token_name
from ensemble_operator.manifests.resources import Resources, binary
from ensemble_operator.manifests.runtime_config import PORT
from ensemble_operator.manifests.settings import PodSettings
from ensemble_operator.manifests.token import TOKEN_FOLDER
from ensemble_runtime.config import Serving

CONTAINER = "runtime"
CONFIG_FOLDER = "/etc/ensemble"
CONFIG_FILE = "config.json"
TERMINATION_LOG = "/dev/termination-log"
USER = 65532
LEAVE_SECONDS = 5
"""Between the order to stop and its arrival: so long it may take until nobody sends requests any more."""
_LEAVE = f"kill -s USR1 1; sleep {LEAVE_SECONDS}"
"""Meanwhile each answer closes its connection: a client that kept it would find it closed under a request."""
_SLACK_SECONDS = 5
_STARTUP_PERIOD = 1
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists"}

Object = dict[str, Any]


def pod_spec(
    *,
    node: str | None,
    resources: Resources,
    image: str,
    command: list[str],
    config_map: str,
    placement: Placement,
    settings: PodSettings,
    claims: tuple[str, ...] = (),
    fetches: Iterable[Fetch] = (),
    secret: str | None = None,
    uses_gpus: bool,
    claim_template: str | None = None,
) -> Object:
    """What serving and profiling pods have in common: where they run, under what, with which files.

    Args:
        node: The node that the plan names; None: the scheduler's choice.
        resources: Requests of the container.
        image: Image of all containers.
        command: Arguments of `ensemble-runtime`.
        config_map: Mounted at CONFIG_FOLDER.
        placement: The ensemble's.
        settings: The installation's.
        claims: PersistentVolumeClaims with models.
        fetches: What init containers fetch.
        secret: Secret whose keys are environment variables of the container, where it fetches by itself.
        uses_gpus: Whether the container may see GPUs at all.
        claim_template: ResourceClaimTemplate of the GPUs that are asked for one by one.
    """
    own = resources.container() | ({"claims": [{"name": "gpus"}]} if claim_template else {})
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [dict(GPU_TAINT), *(_toleration(t) for t in placement.tolerations)],
        "containers": [
            _container(
                CONTAINER,
                image,
                settings,
                ["--log-level", settings.log_level, *command],
                claims,
                resources=own,
                secret=secret,
                uses_gpus=uses_gpus,
            )
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": config_map}},
            {"name": "tmp", "emptyDir": {}},
            {
                "name": "shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": binary(resources.shared_memory_bytes)},
            },
            {"name": "cache", **_cache(settings)},
            *models.volumes(claims),
        ],
    }
    if node is not None:
        spec["affinity"] = _only_on(node)
    if claim_template:
        spec["resourceClaims"] = [{"name": "gpus", "resourceClaimTemplateName": claim_template}]
    init = [
        _container(
            f"fetch-{i}",
            image,
            settings,
            ["fetch", *settings.cache_options, f"{CONFIG_FOLDER}/{fetch.file}"],
            claims,
            resources=resources.without_gpus().container(),
            secret=fetch.secret,
            uses_gpus=False,
        )
        for i, fetch in enumerate(fetches)
    ]
    if init:
        spec["initContainers"] = init
    return spec | _passed_through(placement, settings)


def serving(spec: Object, limits: Serving) -> Object:
    """The spec with what makes it a server: port, probes, and time to finish what is in flight."""
    container, *others = spec["containers"]
    drain = math.ceil(limits.drain_ms / 1000)
    startup = math.ceil(limits.startup_timeout_ms / 1000) + 2 * _SLACK_SECONDS  # the runtime's own limit comes first
    container = container | {
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _probe("ready", period=_STARTUP_PERIOD, failures=math.ceil(startup / _STARTUP_PERIOD)),
        "readinessProbe": _probe("ready", period=2, failures=2),
        "livenessProbe": _probe("live", period=10, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", _LEAVE]}}},
    }
    grace = LEAVE_SECONDS + drain + _SLACK_SECONDS
    return spec | {
        "containers": [container, *others],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": grace,
    }


def among_shards(spec: Object, ensemble: str, pod: str) -> Object:
    """The spec with what a copy of several pods needs: a name in the network, and the token that they share."""
    container, *others = spec["containers"]
    mount = {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True}
    token = {"secretName": token_name(ensemble), "defaultMode": 0o440}
    return spec | {
        "hostname": pod,
        "subdomain": shards_name(ensemble),
        "containers": [container | {"volumeMounts": [*container["volumeMounts"], mount]}, *others],
        "volumes": [
            *spec["volumes"],
            {"name": "token", "secret": token},
        ],
    }


def _container(
    name: str,
    image: str,
    settings: PodSettings,
    command: list[str],
    claims: Iterable[str],
    *,
    resources: Object,
    secret: str | None,
    uses_gpus: bool,
) -> Object:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["ensemble-runtime", *command],
        "env": _environment(uses_gpus=uses_gpus),
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(claims),
    }


def _environment(*, uses_gpus: bool) -> list[Object]:
    # No password file knows the user's number, and libraries ask for name and home.
    environment = {"HOME": "/tmp", "USER": "ensembles"}  # noqa: S108  # in the container, a volume of its own
    if not uses_gpus:
        # Where the NVIDIA runtime is the default one, it would show a pod without this all GPUs of the node.
        environment["NVIDIA_VISIBLE_DEVICES"] = "void"
    return [{"name": name, "value": value} for name, value in environment.items()]


def _mounts(claims: Iterable[str]) -> list[Object]:
    return [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # in the container
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  # in the container
        {"name": "cache", "mountPath": CACHE},
        *models.mounts(claims),
    ]


def _cache(settings: PodSettings) -> Object:
    if settings.model_cache_claim is None:
        return {"emptyDir": {}}
    return {"persistentVolumeClaim": {"claimName": settings.model_cache_claim}}


def _only_on(node: str) -> Object:
    """By affinity rather than `nodeName`: the scheduler still decides, so that a pod waits where it does not fit."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _toleration(toleration: Any) -> Object:
    document: Object = toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


def _probe(path: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": f"/v2/health/{path}", "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _passed_through(placement: Placement, settings: PodSettings) -> Object:
    account = placement.service_account_name or settings.service_account
    secrets = sorted({*placement.image_pull_secrets, *settings.pull_secrets})
    given = {
        "priorityClassName": placement.priority_class_name,
        "runtimeClassName": placement.runtime_class_name,
        "serviceAccountName": account,
        "imagePullSecrets": [{"name": name} for name in secrets] or None,
    }
    return {name: value for name, value in given.items() if value is not None}
