"""On which nodes an ensemble's pods may start."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from ensemble_operator.api.placement import Toleration, TolerationOperator
from ensemble_operator.inventory.labels import GPU
from ensemble_operator.inventory.node import Node, Taint
from ensemble_runtime.config import DeviceKind

_KEEPS_OFF = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class Terms:
    """What an ensemble asks of nodes and devices."""

    kinds: frozenset[DeviceKind] = frozenset({DeviceKind.GPU, DeviceKind.CPU})
    cores_per_device: int = 1
    tolerations: tuple[Toleration, ...] = ()
    """Besides that of the taint nvidia.com/gpu, which our pods always tolerate."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    """Only GPUs that can be asked for one by one: those with a UUID."""

    @property
    def key(self) -> Hashable:
        """The same for the same terms."""
        selector = tuple(sorted(self.node_selector.items()))
        return self.kinds, self.cores_per_device, self.tolerations, selector, self.pinned


def refusal(node: Node, terms: Terms) -> str | None:
    """Why no new cell of the ensemble may start on a node; None where it may."""
    if node.excluded is not None:
        return node.excluded
    for label, value in terms.node_selector.items():
        if node.labels.get(label) != value:
            return f"NotSelected: {label} is not {value}"
    taint = next((t for t in node.taints if t.effect in _KEEPS_OFF and not _tolerated(t, terms.tolerations)), None)
    return f"Tainted: {taint}" if taint is not None else None


def leaves(node: Node, terms: Terms) -> bool:
    """Whether what runs on a node has to leave it: the node is away or evicts, or is not selected any more."""
    return (
        not node.ready
        or any(node.labels.get(label) != value for label, value in terms.node_selector.items())
        or any(taint.effect == "NoExecute" and not _tolerated(taint, terms.tolerations) for taint in node.taints)
    )


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return taint.key == GPU or any(_matches(toleration, taint) for toleration in tolerations)


def _matches(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect is not None and toleration.effect.value != taint.effect:
        return False
    if toleration.key is not None and toleration.key != taint.key:
        return False
    return toleration.operator is TolerationOperator.EXISTS or (toleration.value or "") == taint.value
