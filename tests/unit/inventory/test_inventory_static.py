"""Nodes as a person states them."""

from __future__ import annotations

import pytest

from ensemble_operator.inventory.static import static_inventory
from ensemble_operator.inventory.survey import inventory
from ensemble_runtime.errors import ManifestError

TEXT = """\
- name: node-a
  gpus: {type: NVIDIA-A100-SXM4-40GB, count: 2, memoryMib: 40960}
- name: node-b.example.com
  cores: 8
  memoryMib: 16384
"""


def test_stated_nodes_need_no_leave_to_read_nodes() -> None:
    a, b = inventory([], static=static_inventory({"nodes.yaml": TEXT})).nodes
    assert [(d.name, d.type, d.memory_bytes >> 20) for d in a.devices] == [
        ("gpu0", "NVIDIA-A100-SXM4-40GB", 40360),
        ("gpu1", "NVIDIA-A100-SXM4-40GB", 40360),
    ]
    assert (a.source, a.ready, a.excluded, a.cpu_free_millis) == ("Static", True, None, 0)
    assert (b.devices, b.cpu_free_millis, b.memory_free_bytes) == ((), 8000, 16 * 2**30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {name: a, gpus: {type: X, count: 0, memoryMib: 1}}", ["nodes[0].gpus.count", "at least 1"]),
        ("- {name: a}\n- {name: a}", ["nodes[1].name", "distinct"]),
        ("- {name: a, gpu: {}}", ["nodes[0].gpu", "did you mean `gpus`"]),
        ("- {gpus: {type: X, count: 1, memoryMib: 1}}", [":1: nodes[0].name", "missing"]),
        ("name: a", ["expected one YAML list"]),
        ("", ["expected one YAML list"]),
        ("[", ["static inventory: "]),
        ("- {name: a, cores: 1, cores: 2}", ["written twice"]),
    ],
)
def test_a_mistake_is_told_with_its_path(text: str, words: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        static_inventory({"nodes.yaml": text})
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_key_is_named_where_it_is_missing() -> None:
    with pytest.raises(ManifestError, match=r"nodes\.yaml"):
        static_inventory({"nodes": TEXT})
