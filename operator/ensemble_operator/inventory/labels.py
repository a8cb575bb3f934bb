"""GPUs of a node with NVIDIA's device plugin, from the labels of GPU feature discovery and the node's allocatable.

The labels speak of a node as if all its GPUs were alike, and nobody can choose among them: the kubelet does. So the
devices are anonymous slots, and a plan that says `gpu0` means one GPU of that node.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ensemble_operator.inventory.device import Device
from ensemble_operator.inventory.node import Source
from ensemble_operator.inventory.node_record import NodeRecord
from ensemble_operator.inventory.offer import Offer
from ensemble_operator.inventory.product import device_type
from ensemble_runtime.config import DeviceKind

GPU = "nvidia.com/gpu"
_MIG = "nvidia.com/mig-"
_SHARED = "nvidia.com/gpu.shared"
_MIB = 2**20
_INFIX = "-MIG-"


def labelled(
    node: NodeRecord,
    taken: Mapping[str, int],
    held: Collection[str],
    reserve_bytes: int,
    broken: Collection[str] = (),
) -> Offer:
    """The GPUs that our ensembles may use of a node between them.

    Args:
        node: The node.
        taken: What pods that are not ours request of it.
        held: Names of devices of the node that pods of ours hold; they come first.
        reserve_bytes: Memory of each GPU that is not for members: contexts of CUDA, the driver.
        broken: Names of devices that pods of ours hold and that are not among the allocatable ones any more.

    Returns:
        As many devices as are allocatable and not taken; none of a resource whose GPUs are shared or unknown.
    """
    devices: list[Device] = []
    notes: list[str] = []
    for resource in plugin_gpus(node):
        reason = _shared(node, resource)
        product, memory = _model(node.labels, resource)
        if reason is None and (not product or memory <= 0):
            reason = "no labels tell model and memory; install GPU feature discovery, or state them in the inventory"
        if reason is None and memory <= reserve_bytes:
            reason = f"the reserve of {reserve_bytes // _MIB} MiB leaves nothing of {memory // _MIB} MiB"
        if reason is not None:
            notes.append(f"{resource}: {reason}")
            continue
        count = max(0, node.allocatable[resource] - taken.get(resource, 0))
        for name in names(_prefix(resource), count, held, broken):
            devices.append(
                Device(
                    name, node.name, DeviceKind.GPU, device_type(product), memory - reserve_bytes, source=Source.LABELS
                )
            )
    return Offer(tuple(devices), tuple(notes))


def plugin_gpus(node: NodeRecord) -> list[str]:
    """The resources by which a device plugin offers GPUs of a node."""
    return sorted(name for name, count in node.allocatable.items() if _is_gpu(name) and count > 0)


def resource_of(device: Device) -> str:
    """The resource that a pod asks for to get an anonymous GPU."""
    return GPU if re.fullmatch(r"gpu\d+", device.name) else _MIG + device.type.rpartition(_INFIX)[2]


def is_slot(name: str, resource: str) -> bool:
    """Whether a device's name is that of an anonymous GPU which a resource offers."""
    return bool(_numbers([name], _prefix(resource)))


def names(prefix: str, count: int, held: Collection[str], broken: Collection[str] = ()) -> list[str]:
    """`count` names PREFIX0, PREFIX1, ...: those that are held first, then the lowest free ones; sorted by number.

    Those of broken devices are nobody's until the pod that has them is gone.
    """
    taken, gone, number = set(_numbers(held, prefix)[:count]), set(_numbers(broken, prefix)), 0
    while len(taken) < count:
        if number not in gone:
            taken.add(number)
        number += 1
    return [f"{prefix}{number}" for number in sorted(taken)]


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"(0|[1-9]\d{0,5})")
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def _is_gpu(resource: str) -> bool:
    return resource in (GPU, _SHARED) or resource.startswith(_MIG)


def _prefix(resource: str) -> str:
    """gpu0; mig-1g-5gb-0."""
    if resource == GPU:
        return "gpu"
    return re.sub(r"[^a-z0-9]+", "-", resource.removeprefix("nvidia.com/").lower()) + "-"


def _shared(node: NodeRecord, resource: str) -> str | None:
    """Why a GPU behind the resource is not ours alone: then its memory is not either, and nothing can be packed."""
    strategy = node.labels.get(f"{resource}.sharing-strategy", "none")
    replicas = node.labels.get(f"{resource}.replicas", "1")
    product = node.labels.get(f"{resource}.product", "")
    if strategy == "none" and resource != _SHARED and not product.endswith("-SHARED"):
        if not replicas.isdecimal() or int(replicas) <= 1:
            return None
        strategy = "time-slicing"
    how = "time-slicing or MPS" if strategy == "none" else strategy
    return f"shared by {how}: other pods' memory on the same GPU cannot be known; give ensembles whole GPUs or MIG"


def _model(labels: Mapping[str, str], resource: str) -> tuple[str, int]:
    """Product and bytes of one device; '' and 0 where no label tells."""
    product, mib = labels.get(f"{resource}.product", ""), labels.get(f"{resource}.memory", "")
    whole_gpu = labels.get(f"{GPU}.product", "")
    if not product and whole_gpu and resource.startswith(_MIG):  # older discovery names only the profile
        product = whole_gpu + _INFIX + resource.removeprefix(_MIG)
    return product, int(mib) * _MIB if mib.isdecimal() else 0
