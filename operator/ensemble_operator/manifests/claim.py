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
        devices: GPUs that drivers publish, 32 at the most: what one claim can hold.
        settings: Tells of the drivers.
    """
    requests = [{"name": f"slot-{i}", "exactly": _exactly(device, settings)} for i, device in enumerate(devices)]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"metadata": {"labels": dict(metadata["labels"])}, "spec": {"devices": {"requests": requests}}},
    }


def _exactly(device: Device, settings: PodSettings) -> Object:
    assert device.driver is not None
    words, driver = settings.drivers[device.driver], json.dumps(device.driver)
    # Guarded: to read an attribute that a device lacks is an error, which ends the search for all devices.
    attribute = f"device.attributes[{driver}].{words.uuid}"
    selects = f"device.driver == {driver} && has({attribute}) && {attribute} == {json.dumps(device.uuid)}"
    return {
        "deviceClassName": words.device_class or device.driver,
        "selectors": [{"cel": {"expression": selects}}],
    }
