"""The JSON documents that describe the server, the ensemble and what it has done; pure."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ensemble_runtime.config import DeviceKind, RuntimeConfig, TensorSpec
from ensemble_runtime.gateway.metrics import Counters
from ensemble_runtime.pipeline.port import Health

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")

_KINDS = {DeviceKind.GPU: "KIND_GPU", DeviceKind.CPU: "KIND_CPU", DeviceKind.SIMULATED: "KIND_CPU"}


def server_metadata() -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": "ensemble-runtime", "version": version("ensembles"), "extensions": EXTENSIONS}


def model_metadata(config: RuntimeConfig) -> dict[str, Any]:
    """`GET /v2/models/{name}`; shapes have the batch first."""
    return {
        "name": config.name,
        "versions": [config.version],
        "platform": "ensemble",
        "inputs": [_tensor(spec) for spec in config.inputs],
        "outputs": [_tensor(spec) for spec in config.outputs],
    }


def devices(config: RuntimeConfig) -> list[dict[str, Any]]:
    """The devices that this runtime has, with what was found for slots; cores are empty where it shares them."""
    return [
        {
            "name": device.name,
            "kind": device.kind.value,
            "type": device.type,
            "uuid": device.uuid,
            "pciBusId": device.pci_bus_id,
            "cores": list(device.cores),
        }
        for device in config.devices
    ]


def model_config(config: RuntimeConfig, max_rows: int) -> dict[str, Any]:
    """`GET /v2/models/{name}/config`, in the words of Triton's model configuration; dims are without the batch."""
    kinds = {device.name: _KINDS[device.kind] for device in config.devices}
    kinds |= {remote.name: "KIND_MODEL" for remote in config.remotes}
    cells = dict.fromkeys((cell.member, cell.device) for cell in config.cells)
    facts = {
        "rule": config.combination.rule.value,
        "predictions": config.combination.predictions.value,
        "members": ",".join(member.name for member in config.members),
    } | {f"max_length.{spec.name}": str(spec.max_length) for spec in config.inputs if not spec.fixed}
    if config.predicted_rows_per_second is not None:  # the plan's promise, for those who measure
        facts["predicted_rows_per_second"] = f"{config.predicted_rows_per_second:.9g}"
    return {
        "name": config.name,
        "platform": "ensemble",
        "max_batch_size": max_rows,
        "input": [_config_tensor(spec) for spec in config.inputs],
        "output": [_config_tensor(spec) for spec in config.outputs],
        "instance_group": [
            {"name": f"{member}@{device}", "kind": kinds[device], "count": 1} for member, device in cells
        ],
        "parameters": {key: {"string_value": value} for key, value in facts.items()},
    }


def repository_index(config: RuntimeConfig, health: Health, only_ready: bool) -> list[dict[str, Any]]:
    """`POST /v2/repository/index`."""
    if only_ready and not health.ready:
        return []
    state = "READY" if health.ready else "UNAVAILABLE"
    return [{"name": config.name, "version": config.version, "state": state, "reason": health.reason}]


def statistics(config: RuntimeConfig, counters: Counters, health: Health) -> dict[str, Any]:
    """`GET /v2/models/stats`, in Triton's shape.

    Of the ensemble, an execution is a request; `compute_input` is the body's way into the arena, `compute_infer` the
    pipeline with its queues, `compute_output` the answer. Queues are measured per member alone (`/metrics`), so that
    `queue` stays at 0. Of each cell, under `cells`, an execution is a batch.
    """
    count = counters.succeeded
    stats = {
        "success": _duration(count, counters.request_ns),
        "fail": _duration(sum(counters.failed.values()), counters.failed_ns),
        "queue": _duration(0, 0),
        "compute_input": _duration(count, counters.receive_ns),
        "compute_infer": _duration(count, counters.pipeline_ns),
        "compute_output": _duration(count, counters.encode_ns),
        "cache_hit": _duration(0, 0),
        "cache_miss": _duration(0, 0),
    }
    ensemble = {
        "name": config.name,
        "version": config.version,
        "last_inference": counters.last_inference_ms(),
        "inference_count": counters.rows,
        "execution_count": count,
        "inference_stats": stats,
        "batch_stats": [],
        "cells": [
            {
                "name": f"{cell.member}@{cell.device}",
                "batch_size": cell.batch_size,
                "state": cell.state,
                "inference_count": cell.rows,
                "execution_count": cell.batches,
                "errors": cell.errors,
                "restarts": cell.restarts,
                "compute_infer": _duration(cell.batches, round(cell.busy_seconds * 1e9)),
            }
            for cell in health.cells
        ],
    }
    return {"model_stats": [ensemble]}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": [-1, *spec.shape]}


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype.value}", "dims": list(spec.shape)}


def _duration(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
