"""How a placed graph is cut into runs: what is computed by whom, what is only a view, what waits for what."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import DeviceUnavailableError
from ensemble_runtime.partition.graph import Graph, Placement, parse
from ensemble_runtime.partition.opening import alternating, opened
from ensemble_runtime.partition.runs import program, root
from ensemble_runtime.partition.sessions import cut_out, open_session


def layers(count: int, steps: int, chunk: int) -> Graph:
    """A stack of LSTM layers, rows first, in chunks."""
    random = np.random.default_rng(0)
    weights = {"one": np.array([1])}
    nodes = [helper.make_node("Transpose", ["x"], ["s0"], name="turn", perm=[1, 0, 2])]
    for i in range(count):
        weights[f"W{i}"] = random.normal(size=(1, 64, 16)).astype(np.float32)
        weights[f"R{i}"] = random.normal(size=(1, 64, 16)).astype(np.float32)
        nodes.append(helper.make_node("LSTM", [f"s{i}", f"W{i}", f"R{i}"], [f"y{i}"], name=f"layer{i}", hidden_size=16))
        nodes.append(helper.make_node("Squeeze", [f"y{i}", "one"], [f"s{i + 1}"], name=f"squeeze{i}"))
    nodes.append(helper.make_node("Relu", [f"s{count}"], ["y"], name="end"))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", steps, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return opened(parse(model, {"x": (2, steps, 16)}), {f"layer{i}": chunk for i in range(count)})


def by_layer(graph: Graph) -> Placement:
    return Placement({x.name: int("layer1" in x.name or "squeeze1" in x.name) for x in graph.operators})


def needed_before(graph: Graph) -> dict[str, set[str]]:
    before: dict[str, set[str]] = {}
    for operator in graph.operators:
        near = graph.predecessors[operator.name]
        before[operator.name] = set(near).union(*(before[x] for x in near))
    return before


def test_only_recurrent_chunks_are_computed() -> None:
    """Turning, cutting, squeezing and zeros cost no call; the last operator has one."""
    graph = layers(2, 12, 4)
    found = program(graph, by_layer(graph))
    computed = [run.operators for run in found.runs]
    chunks = [names for names in computed if graph.by_name[names[0]].op_type == "LSTM"]
    assert chunks == [(f"layer{i}/{k}",) for i in range(2) for k in range(3)]
    assert {graph.by_name[x].op_type for names in computed if names not in chunks for x in names} == {"Relu"}
    assert {graph.by_name[name].op_type for name in found.prelude} == {"Shape", "Gather", "Concat", "ConstantOfShape"}
    assert root(found.views, "s0/cut0x3/1") == "s0"
    assert found.turned["x"].name == "s0"


def test_a_chunk_waits_for_its_own_predecessor_on_the_other_device_only() -> None:
    graph = layers(2, 12, 4)
    runs = program(graph, by_layer(graph)).runs
    index = {name: i for i, run in enumerate(runs) for name in run.operators}
    for k in range(3):
        assert runs[index[f"layer1/{k}"]].waits == index[f"layer0/{k}"]
        assert runs[index[f"layer0/{k}"]].feeds
        assert runs[index[f"layer0/{k}"]].waits is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32))
def test_whatever_the_placement_nothing_runs_before_what_it_reads(count: int, chunk: int, bits: int) -> None:
    """Played with each device going as far as it can, every operator's predecessors have ended before it begins."""
    graph = layers(count, 6, chunk)
    placement = Placement({x.name: bits >> (i % 33) & 1 for i, x in enumerate(graph.operators)})
    found = program(graph, placement)
    before = needed_before(graph)
    computed = {name for run in found.runs for name in run.operators}
    lanes = [[i for i, run in enumerate(found.runs) if run.device == device] for device in (0, 1)]
    ended: set[int] = set()
    done: set[str] = set()
    while any(lanes):
        free = [lane for lane in lanes if lane and found.runs[lane[0]].waits in {None, *ended}]
        assert free, "both devices wait"
        i = free[-1].pop(0)
        for name in found.runs[i].operators:
            assert before[name] & computed <= done | {name} | set(found.runs[i].operators)
            done.add(name)
        ended.add(i)
    waited = [run.waits for run in found.runs if run.waits is not None]
    assert len(waited) == len(set(waited)), "a gate lets one thread through"
    assert {i for i, run in enumerate(found.runs) if run.feeds} == set(waited)


def test_alike_chunks_are_equal_pieces() -> None:
    graph = layers(2, 12, 4)
    runs = program(graph, by_layer(graph)).runs
    pieces = {cut_out(graph, run.operators).piece for run in runs if "layer0" in run.operators[0]}
    assert len(pieces) == 1


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA")
def test_a_gpu_without_cuda_is_named() -> None:
    graph = layers(1, 6, 2)
    model: onnx.ModelProto = cut_out(graph, ["layer0/0"]).piece.model(graph, ["tensor/3"])
    gpu = Device(name="gpu0", kind=DeviceKind.GPU, type="some-gpu", memory_bytes=2**30, uuid="GPU-0")
    with pytest.raises(DeviceUnavailableError, match="gpu0"):
        open_session(model, gpu)


def test_layers_alternate_with_all_their_chunks() -> None:
    device = alternating(layers(3, 12, 4)).device
    assert [{device[f"layer{i}/{k}"] for k in range(3)} for i in range(3)] == [{0}, {1}, {0}]
    assert set(alternating(layers(1, 12, 4)).device.values()) == {0}
