"""The claim of a pod for GPUs that can be asked for one by one: those that ResourceSlices tell of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ensemble_operator.inventory.device import Device
from ensemble_operator.manifests.objects import Object
from ensemble_operator.manifests.settings import PodSettings


def claim_template(metadata: Object, devices: Sequence[Device], settings: PodSettings) -> Object:
    """A ResourceClaimTemplate with one request for each device, by UUID; the claim comes and goes with its pod.

    Args:
        metadata: Its name is the pod's.
        devices: GPUs with a UUID, 32 at the most: what one claim can hold.
        settings: Names the driver.
    """
    requests = [
        {
            "name": f"slot-{i}",
            "exactly": {
                "deviceClassName": settings.device_class,
                "selectors": [{"cel": {"expression": _selects(device, settings)}}],
            },
        }
        for i, device in enumerate(devices)
    ]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"metadata": {"labels": dict(metadata["labels"])}, "spec": {"devices": {"requests": requests}}},
    }


def _selects(device: Device, settings: PodSettings) -> str:
    # Guarded: to read an attribute that a device lacks is an error, which ends the search for all devices.
    driver, name = json.dumps(settings.device_class), settings.uuid_attribute
    attribute = f"device.attributes[{driver}].{name}"
    return f"device.driver == {driver} && has({attribute}) && {attribute} == {json.dumps(device.uuid)}"
