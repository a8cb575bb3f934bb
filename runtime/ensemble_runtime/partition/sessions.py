"""Operators of a graph as a model of their own, and the ONNX Runtime session that computes it.

Runs that are alike but for the names of their tensors, such as the chunks of a layer, share one session: ONNX Runtime
keeps its own packed copy of the weights in each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import DeviceUnavailableError
from ensemble_runtime.members.checks import failure, first_line
from ensemble_runtime.members.onnx_model import opened, options
from ensemble_runtime.partition.graph import Graph, bodies
from ensemble_runtime.partition.shapes import Array, Found


@dataclass(frozen=True)
class Piece:
    """Some operators of a graph, its tensors renamed by their order: alike pieces are equal."""

    nodes: tuple[bytes, ...]
    """Serialised."""
    inputs: tuple[tuple[str, str], ...]
    """Name and datatype of each tensor that is read."""
    weights: tuple[str, ...]
    """Names in the graph."""

    @property
    def op_type(self) -> str:
        """Of its first operator."""
        return str(onnx.NodeProto.FromString(self.nodes[0]).op_type)

    def model(self, graph: Graph, outputs: Sequence[str]) -> onnx.ModelProto:
        """A model that puts out some of its tensors.

        Args:
            graph: Where the weights are.
            outputs: Names inside of this piece.
        """
        model = self._without_weights(graph, outputs)
        model.graph.initializer.extend(graph.weight(name) for name in self.weights)
        return model

    @contextmanager
    def written(self, graph: Graph, outputs: Iterable[str]) -> Iterator[int]:
        """The same in memory that has a descriptor.

        Of what is opened by a path ONNX Runtime makes three copies fewer than of bytes. It is written weight by weight:
        messages that follow each other are one message.
        """
        with os.fdopen(os.memfd_create("model"), "wb") as file:
            file.write(self._without_weights(graph, list(outputs)).SerializeToString())
            for name in self.weights:
                part = onnx.ModelProto()
                part.graph.initializer.append(graph.weight(name))
                file.write(part.SerializeToString())
            file.flush()
            yield file.fileno()

    def _without_weights(self, graph: Graph, outputs: Sequence[str]) -> onnx.ModelProto:
        given = graph.light
        model = onnx.ModelProto(ir_version=given.ir_version)
        model.opset_import.extend(given.opset_import)
        model.functions.extend(given.functions)
        made = model.graph
        made.name = "piece"
        made.node.extend(onnx.NodeProto.FromString(node) for node in self.nodes)
        inputs = ((name, _element(datatype)) for name, datatype in self.inputs)
        made.input.extend(helper.make_tensor_value_info(name, element, None) for name, element in inputs)
        made.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model


@dataclass(frozen=True)
class Call:
    """A piece, and which tensors of the graph its own names stand for."""

    piece: Piece
    names: dict[str, str]
    """Name in the piece by name in the graph."""


def cut_out(graph: Graph, operators: Sequence[str]) -> Call:
    """The piece that some operators make.

    Args:
        graph: The graph.
        operators: Names, in a topological order.
    """
    chosen = [graph.by_name[name] for name in operators]
    nodes = [graph.nodes[name] for name in operators]
    made = {output for operator in chosen for output in operator.outputs}
    read = tuple(dict.fromkeys(x for operator in chosen for x in operator.inputs if x not in made))
    weights = tuple(sorted({x for operator in chosen for x in operator.weights}))
    # Names inside of branches and bodies are left as they are, so that nothing in there has to be rewritten.
    plain = not any(True for node in nodes for _ in bodies(node))
    outputs = [output for operator in chosen for output in operator.outputs]
    names = {name: f"tensor/{i}" if plain else name for i, name in enumerate((*read, *outputs))}
    return Call(
        Piece(
            nodes=tuple(_renamed(node, names, i) for i, node in enumerate(nodes)),
            inputs=tuple((names[x], graph.tensors[x].datatype) for x in read),
            weights=weights,
        ),
        names,
    )


def path_of(descriptor: int) -> str:
    """Of what this process has open."""
    return f"/proc/self/fd/{descriptor}"


def open_session(model: bytes | str, device: Device, stream: int | None = None) -> Any:
    """A session of ONNX Runtime on a device; to be opened by a thread that is bound to it.

    Args:
        model: Serialised, or its path.
        device: Where it computes.
        stream: The CUDA stream on which it does so.

    Raises:
        ModelInvalidError: ONNX Runtime refuses it.
        OutOfMemoryError: it has no room on the device.
        DeviceUnavailableError: a GPU, and this ONNX Runtime has no CUDA, or cannot start it.
    """
    try:
        chosen = options(device)
        if stream is not None:
            chosen.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return opened(model, device, chosen, stream)
    except DeviceUnavailableError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes without a common base
        raise failure(error, f"cannot be computed in parts: {first_line(error)}") from error


def call(session: Any, binding: Any, *, ahead: bool = False) -> Callable[[], None]:
    """A session's run of what is bound, as one call into ONNX Runtime; with `ahead` it does not wait for its stream.

    Its wrapper in Python looks every time whether a WebGPU captures a graph, and pybind11 tries twice where there are
    no options. Between two chunks both devices wait for that: 0.7 us of the 1.8 that a call takes.
    """
    options = onnxruntime.RunOptions()
    if ahead:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return partial(session._sess.run_with_iobinding, binding._iobinding, options)


def constants(graph: Graph, prelude: Sequence[str], found: Mapping[str, Found]) -> dict[str, Array]:
    """What some operators put out that depend on shapes only, computed on the host.

    Args:
        graph: The graph.
        prelude: Names of the operators.
        found: The shape of every tensor.
    """
    if not prelude:
        return {}
    call, inside = cut_out(graph, prelude), set(prelude)
    outputs = [y for name in prelude for y in graph.by_name[name].outputs]
    wanted = [y for y in outputs if y in graph.outputs or not inside.issuperset(graph.readers.get(y, ()))]
    model = call.piece.model(graph, [call.names[y] for y in wanted])
    feeds = {call.names[x]: np.zeros(found[x].shape, found[x].datatype) for x in call.names if x not in set(outputs)}
    answers = open_session(model.SerializeToString(), _HOST).run([call.names[y] for y in wanted], feeds)
    return dict(zip(wanted, answers, strict=True))


_HOST = Device(name="host", kind=DeviceKind.CPU, type="cpu-1", memory_bytes=1, cores=(0,))
"""Where shapes are computed; one thread, whichever core it is on."""


def _renamed(node: onnx.NodeProto, names: dict[str, str], index: int) -> bytes:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.op_type}{index}"
    for field in (copy.input, copy.output):
        for i, name in enumerate(field):
            field[i] = names.get(name, name)
    return bytes(copy.SerializeToString(deterministic=True))


def _element(datatype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(datatype)))
