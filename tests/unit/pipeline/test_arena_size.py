"""What the control plane asks for is what the arena takes."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.sizes import shared_memory_bound
from ensemble_runtime.span import laid_out

SPARSE = 2**38

_tensor = st.builds(
    lambda datatype, shape, longest: {"datatype": datatype, "shape": shape, "maxLength": longest},
    st.sampled_from(["BOOL", "FP16", "FP32", "INT64"]),
    st.lists(st.sampled_from([-1, 1, 3, 32]), max_size=3),
    st.integers(1, 40),
)


@st.composite
def configs(draw: st.DrawFn) -> RuntimeConfig:
    members = draw(st.integers(1, 12))
    devices = draw(st.integers(1, 4))
    batches = draw(st.lists(st.sampled_from([1, 8, 128, 4096]), min_size=members * devices, max_size=members * devices))
    model = {"uri": "file:///m.onnx", "format": "ONNX"}
    queue = draw(
        st.fixed_dictionaries({"queueRequests": st.integers(1, 65_536)}, optional={"queueRows": st.integers(1, 9000)})
    )
    remotes = draw(st.lists(st.integers(2, 4), max_size=2))
    far = draw(st.integers(1, members))
    return RuntimeConfig.model_validate(
        {
            "name": "e",
            "members": [{"name": f"m{m}", "model": model} for m in range(members)],
            "inputs": [t | {"name": f"x{i}"} for i, t in enumerate(draw(st.lists(_tensor, min_size=1, max_size=3)))],
            "outputs": [t | {"name": f"y{i}"} for i, t in enumerate(draw(st.lists(_tensor, min_size=1, max_size=3)))],
            "devices": [{"name": f"d{d}", "kind": "CPU", "type": "cpu-1", "memoryBytes": 1} for d in range(devices)],
            "cells": [
                {"device": f"d{d}", "member": f"m{m}", "batchSize": batches[m * devices + d]}
                for m in range(members)
                for d in range(devices)
            ]
            + [
                {"device": f"r{r}", "member": f"m{m}", "batchSize": batches[m]}
                for r in range(len(remotes))
                for m in range(far)
            ],
            "remotes": [
                {"name": f"r{r}", "url": "http://far", "tokenFile": "t", "connections": connections}
                for r, connections in enumerate(remotes)
            ],
            "serving": {**queue, "hosting": draw(st.sampled_from(["PerCell", "PerDevice"]))},
        }
    )


@settings(deadline=None)
@given(configs())
def test_the_bound_holds_and_is_near(config: RuntimeConfig) -> None:
    fd = os.memfd_create("arena")
    try:
        os.ftruncate(fd, SPARSE)
        size = Arena(laid_out(config), fd).size
    finally:
        os.close(fd)
    bound = shared_memory_bound(config)
    assert size <= bound
    # What each member and cell is granted for words and rounding outweighs the tensors of a very small arena.
    assert bound <= 2 * size + 4096 * (len(config.members) + len(laid_out(config).cells) + 4)
