"""The quick start of the docs, typed on real nodes by the real kubectl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from beds.cluster import Cluster
from beds.machines import Machines
from beds.quick_start import ENSEMBLE, KUBERNETES, QuickStart

pytestmark = pytest.mark.timeout(600)  # the first test brings the cluster up


@pytest.fixture
def quick_start(machines: Machines, cluster: Cluster, room: str, tmp_path: Path) -> Iterator[QuickStart]:
    """In a folder that looks like the repository, whose own may hold what its user has trained."""
    (tmp_path / "examples" / "digits").mkdir(parents=True)
    (tmp_path / "examples" / "kubernetes").symlink_to(KUBERNETES)
    quick_start = QuickStart(machines, room, tmp_path)
    quick_start.train()
    quick_start.provide()
    yield quick_start
    quick_start.clear()


def test_the_quick_start_serves_the_digits_example(quick_start: QuickStart) -> None:
    said = {}
    quick_start.follow(said.__setitem__)
    assert "wide-mlp" in said["kubectl ensemble explain digits"]
    held_out = quick_start.held_out()
    answers = quick_start.ask(held_out)
    expected = quick_start.compute(held_out)
    assert answers.keys() == expected.keys() == {ENSEMBLE, "wide-mlp", "gru"}
    for name, probabilities in expected.items():
        np.testing.assert_allclose(answers[name], probabilities, atol=1e-5)
    assert held_out.accuracy(answers[ENSEMBLE]) > 0.9
