"""Makes torch models cheap to call.

A call of ``ExportedProgram.module()`` spends 150 to 200 us in Python on guards and on the tree of its arguments,
whatever the model computes. The same graph with flat arguments, compiled by TorchScript, costs a tenth of that, keeps
its variable sizes (it is compiled from the graph's text, not traced), and gains the CPU optimisations of frozen
modules: folded batch norms, weights laid out for oneDNN.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen

_CONVOLUTION = re.compile(r"aten::\w*conv")


def flat_module(program: ExportedProgram, precision: torch.dtype) -> tuple[torch.fx.GraphModule, Sequence[str] | None]:
    """The program as a module that takes its tensors by position and answers a flat tuple.

    Guards are left out: their code comes from the file, and shapes are checked before and after.

    Args:
        program: On its final device.
        precision: Floating-point type of weights and of the tensors that the graph itself makes.

    Returns:
        The module, and the outputs' names if the program answers a dictionary.
    """
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    graph.set_codegen(CodeGen())
    if precision is not torch.float32:
        _retype(graph, precision)
    module = torch.fx.GraphModule(unlifted, graph).to(precision)
    spec = program.call_spec.out_spec
    return module, list(spec.context) if spec is not None and spec.type is dict else None


def scripted(module: torch.fx.GraphModule) -> torch.jit.ScriptModule:
    """Compile a flat module with TorchScript.

    Raises:
        Exception: the graph holds something that TorchScript does not know, e.g. a higher-order operator.
    """
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        # TorchScript resolves overloads by itself and calls sizes by another name.
        if node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
    with quiet():
        return torch.jit.script(torch.fx.GraphModule(module, graph).eval())


def optimised(module: torch.jit.ScriptModule, precision: torch.dtype) -> Any:
    """A frozen copy for inference on a CPU; convolutions in FP32 with weights laid out for oneDNN."""
    with quiet():
        frozen = torch.jit.freeze(module) if hasattr(module, "training") else module
        # Without convolutions all that the pass does is to turn the weights of linear layers round, which makes every
        # batch of more than two rows slower, by 3 to 6 %.
        convolves = _CONVOLUTION.search(str(frozen.graph)) is not None
        return torch.jit.optimize_for_inference(frozen) if convolves and precision is torch.float32 else frozen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without TorchScript's warnings that it is deprecated: torch offers no other way to calls this cheap."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _retype(graph: torch.fx.Graph, precision: torch.dtype) -> None:
    """Make what the graph creates match weights of another precision, e.g. the zero state of a recurrent layer."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.kwargs.get("dtype") is torch.float32 and not any(map(_is_tensor, node.all_input_nodes)):
            node.update_kwarg("dtype", precision)


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
