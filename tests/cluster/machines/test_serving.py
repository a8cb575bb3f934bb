"""Ensembles served by pods on real nodes, through their Services."""

from __future__ import annotations

import numpy as np
import pytest

from beds.models import COLUMNS
from beds.served import Served

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up
ROWS = np.linspace(-2, 2, 50 * COLUMNS, dtype=np.float32).reshape(50, COLUMNS)


def on_nodes(served: Served) -> dict[str, str]:
    """The role of each pod by its node."""
    return {pod["spec"]["nodeName"]: pod["metadata"]["labels"]["ensembles.dev/role"] for pod in served.pods()}


def test_an_ensemble_on_one_node_answers_as_its_members_do_here(serving: Served) -> None:
    assert serving.right(ROWS, serving.predict(ROWS))
    assert on_nodes(serving) == {"node-1": "head"}
    (row,) = serving.space.status(serving.name)["matrix"]
    assert {cell["member"] for cell in row["cells"]} == {"net-0", "net-1", "net-2"}
