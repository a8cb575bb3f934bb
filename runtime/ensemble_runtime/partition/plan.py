"""A program at one shape of its inputs: its tensors in place, and the bindings that read and write them.

All of it is made once for each shape: to compute another batch, nothing is allocated, looked up or bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_runtime.partition.beside import Part, Step
from ensemble_runtime.partition.gpu import Arena, Sessions, on_gpu
from ensemble_runtime.partition.graph import Graph
from ensemble_runtime.partition.memory import Array, Memory
from ensemble_runtime.partition.runs import Program, Run
from ensemble_runtime.partition.sessions import call


@dataclass(frozen=True)
class Bound:
    """A program with its tensors in place."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    steps: tuple[Step, ...]
    """What the first device does."""
    parts: tuple[Part, ...]
    """What the second one does."""
    memory: Memory
    """Kept for as long as bindings point there."""
    plan: int | None = None
    """The number under which the second device knows it; None where that has nothing to do."""


def bound(graph: Graph, program: Program, sessions: Sessions, memory: Memory, arena: Arena | None) -> Bound:
    """Bind a program's runs to its tensors.

    Args:
        graph: The program's.
        program: What is computed.
        sessions: Of each run; of the second device's its number there.
        memory: For this shape.
        arena: Memory of the first device if that is a GPU.
    """
    steps, parts = [], []
    given = [program.turned[name].name if name in program.turned else name for name in graph.inputs]
    there = on_gpu(program.runs, sessions, memory, arena, given, graph.outputs) if arena else {}
    for i, (run, (session, names)) in enumerate(zip(program.runs, sessions, strict=True)):
        tell = i if run.feeds else None
        if run.device == 0:
            compute = there[i] if arena else computation(session, run, names, memory)
            steps.append(Step(run.waits, compute, tell))
        else:
            inputs, outputs = (tuple(memory.at(x, names[x]) for x in found) for found in (run.inputs, run.outputs))
            parts.append(Part(run.waits, session, inputs, outputs, tell))
    return Bound(
        inputs=tuple(_input(program, memory, name) for name in graph.inputs),
        outputs=tuple(memory.array(name) for name in graph.outputs),
        steps=tuple(steps),
        parts=tuple(parts),
        memory=memory,
    )


def _input(program: Program, memory: Memory, name: str) -> Array:
    """Where an input is copied to, in its own order of axes."""
    turned = program.turned.get(name)
    if turned is None:
        return memory.array(name)
    return memory.array(turned.name).transpose(np.argsort(turned.axes))


def computation(session: Any, run: Run, names: Mapping[str, str], memory: Memory) -> Callable[[], None]:
    """A session bound to a run's tensors, ready to compute.

    Args:
        session: Of the run's operators.
        run: Which tensors.
        names: What the session calls them.
        memory: Where they are.
    """
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *memory.bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *memory.bind(name))
    return call(session, binding)
