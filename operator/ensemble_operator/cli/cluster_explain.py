"""`ensemblectl explain`: the plan that an ensemble of a cluster runs, with its reasons, and why what waits waits."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ensemble_operator.api.ensemble import EnsembleSpec, InferenceEnsemble
from ensemble_operator.api.profile import ModelProfile
from ensemble_operator.cli.cluster import Body, Cluster
from ensemble_operator.cli.cluster_inventory import survey
from ensemble_operator.cli.cluster_status import stale
from ensemble_operator.cli.explaining import explained, explained_table
from ensemble_operator.cli.output import Output, emit
from ensemble_operator.inventory.cpu import core_memory
from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests import labels
from ensemble_operator.manifests.question import question
from ensemble_operator.planner.given import given_plan
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.profiles.table import written
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import EnsembleError, ManifestError

if TYPE_CHECKING:
    from rich.console import RenderableType

Cells = dict[tuple[str, str, str], int]
_URI = "ensembles.dev/uri"
_AS_WISHED = {"Degraded": "False", "Progressing": "False", "Suspended": "False"}
"""What these conditions are when nothing is to be explained; others are then True."""


def show_explanation(cluster: Cluster, name: str, output: Output) -> None:
    """Print why an ensemble is not as wished, if so, and the plan of each of its copies with its reasons.

    Raises:
        EnsembleError: There is none of that name, or the cluster cannot be asked.
    """
    (body,) = cluster.ensembles(name)
    reasons = [*_unwished(body)]
    plans: dict[int, Plan] = {}
    pods = cluster.pods(f"{labels.ENSEMBLE}={name},app.kubernetes.io/component={labels.SERVING}")
    for copy, (devices, cells) in sorted(_copies(pods).items()):
        try:
            plans[copy] = given_plan(_problem(cluster, body, devices), cells)
        except EnsembleError as error:
            reasons.append(f"copy {copy} cannot be explained: {error}")
    if not pods and (body.get("status") or {}).get("matrix"):
        plans[0] = given_plan(*_planned(cluster, body))
    if not plans and not reasons:
        reasons.append("it has no pods")
    document = {"name": name, "reasons": reasons, "copies": [{"copy": c, **explained(p)} for c, p in plans.items()]}
    emit(output, document, lambda: _table(name, reasons, plans))


def _unwished(body: Body) -> Iterator[str]:
    if stale(body):
        yield "the operator has not seen this spec yet"
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition["status"] != _AS_WISHED.get(condition["type"], "True"):
            yield f"{condition['type']} is {condition['status']}, {condition['reason']}: {condition.get('message', '')}"


def _copies(pods: list[Body]) -> dict[int, tuple[tuple[Device, ...], Cells]]:
    """By copy, the devices that its pods hold and the cells that they run; of the newest plan where there are two."""
    sets: dict[int, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        metadata = pod["metadata"]
        if "deletionTimestamp" not in metadata and labels.COPY in metadata["labels"]:
            sets[int(metadata["labels"][labels.COPY])][metadata["labels"][labels.PLAN]].append(metadata["annotations"])
    found = {}
    for copy, plans in sets.items():
        of_plan = list(plans.values())[-1]
        devices = {(d.node, d.name): d for annotations in of_plan for d in labels.held(annotations)}
        cells = {(d.node, d.name, m): size for annotations in of_plan for d, m, size in labels.running(annotations)}
        found[copy] = (tuple(devices.values()), cells)
    return found


def _planned(cluster: Cluster, body: Body) -> tuple[Problem, Cells]:
    """What the status says is planned, where no pod says it: mode PlanOnly."""
    nodes = {node.name: node for node in survey(cluster, cluster.pods(everywhere=True)).nodes}
    devices, cells = [], Cells()
    for row in body["status"]["matrix"]:
        node, cores = nodes.get(row["node"]), re.fullmatch(r"cpu-(\d+)", row["type"])
        if node is None:
            raise ManifestError(f"node {row['node']}, on which it is planned, is gone")
        known = {device.name: device for device in node.devices}
        if cores is not None:
            memory = core_memory(node) * int(cores[1])
            devices.append(Device(row["device"], node.name, DeviceKind.CPU, row["type"], memory))
        elif row["device"] in known:
            devices.append(known[row["device"]])
        cells |= {(node.name, row["device"], cell["member"]): cell["batchSize"] for cell in row["cells"]}
    return _problem(cluster, body, tuple(devices)), cells


def _problem(cluster: Cluster, body: Body, devices: tuple[Device, ...]) -> Problem:
    spec = _spec(body)
    profiles = list(_profiles(cluster))
    by_uri = {uri: profile.spec.model.sha256 for profile, uri in profiles if uri}
    digests = {m.name: d for m in spec.members if (d := m.model.sha256 or by_uri.get(m.model.uri)) is not None}
    if lacking := [m.name for m in spec.members if m.name not in digests]:
        raise ManifestError(f"no profile tells the digest of {', '.join(lacking)}")
    return question(spec, digests, devices, written(profile for profile, _ in profiles))


def _spec(body: Body) -> EnsembleSpec:
    metadata = {key: body["metadata"][key] for key in ("name", "namespace")}
    document = {**body, "metadata": metadata, "status": None}
    try:
        return InferenceEnsemble.model_validate_json(json.dumps(document), by_alias=True, by_name=False).spec
    except ValidationError as error:
        raise ManifestError(f"this version does not understand the manifest: {error.errors()[0]['msg']}") from error


def _profiles(cluster: Cluster) -> Iterator[tuple[ModelProfile, str | None]]:
    for body in cluster.profiles():
        try:
            profile = ModelProfile.model_validate_json(json.dumps({k: v for k, v in body.items() if k != "status"}))
        except ValidationError:
            continue  # the operator passes it over too, and says so in its log
        yield profile, (body["metadata"].get("annotations") or {}).get(_URI)


def _table(name: str, reasons: list[str], plans: Mapping[int, Plan]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(reason) for reason in reasons]
    for copy, plan in plans.items():
        title = f"Copy {copy} of {name}, plan {plan.digest}" if len(plans) > 1 else f"Plan {plan.digest} of {name}"
        parts += ["", Text(title, style="bold"), "", explained_table(plan)]
    return Group(*parts)
