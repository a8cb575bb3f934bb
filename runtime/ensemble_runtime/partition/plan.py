"""A program at one shape of its inputs: its tensors in place, and the bindings that read and write them.

All of it is made once for each shape: to compute another batch, nothing is allocated, looked up or bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemble_runtime.partition.ahead import Ahead, walk_ahead
from ensemble_runtime.partition.beside import Part, Step, walk
from ensemble_runtime.partition.gates import Bells
from ensemble_runtime.partition.gpu import Gpu, Sessions, on_gpu
from ensemble_runtime.partition.graph import Graph
from ensemble_runtime.partition.memory import Array, Memory
from ensemble_runtime.partition.runs import Program, Run
from ensemble_runtime.partition.sessions import call

Walk = Callable[[Bells, memoryview, int], BaseException | None]
"""Computes one device's runs of a batch, by its bells, the gates and the turn; returns what went wrong."""


@dataclass(frozen=True)
class Bound:
    """A program with its tensors in place."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    walk: Walk
    """What the first device does."""
    parts: tuple[Part, ...]
    """What the second one does."""
    memory: Memory
    """Kept for as long as bindings point there."""
    plan: int | None = None
    """The number under which the second device knows it; None where that has nothing to do."""


def bound(graph: Graph, program: Program, sessions: Sessions, memory: Memory, gpu: Gpu | None) -> Bound:
    """Bind a program's runs to its tensors.

    Args:
        graph: The program's.
        program: What is computed.
        sessions: Of each run; of the second device's its number there.
        memory: For this shape.
        gpu: The first device if that is one.
    """
    parts = []
    for i, (run, (session, names)) in enumerate(zip(program.runs, sessions, strict=True)):
        if run.device:
            inputs, outputs = (tuple(memory.at(x, names[x]) for x in found) for found in (run.inputs, run.outputs))
            parts.append(Part(run.waits, session, inputs, outputs, _tells(i, run)))
    return Bound(
        inputs=tuple(_input(program, memory, name) for name in graph.inputs),
        outputs=tuple(memory.array(name) for name in graph.outputs),
        walk=_on_gpu(graph, program, sessions, memory, gpu) if gpu else _on_cores(program, sessions, memory),
        parts=tuple(parts),
        memory=memory,
    )


def _on_gpu(graph: Graph, program: Program, sessions: Sessions, memory: Memory, gpu: Gpu) -> Walk:
    given = [program.turned[name].name if name in program.turned else name for name in graph.inputs]
    uploads, computations = on_gpu(program.runs, sessions, memory, gpu, given, graph.outputs)
    runs = ((i, program.runs[i], computation) for i, computation in computations.items())
    steps = tuple(Ahead(run.waits, computation, _tells(i, run)) for i, run, computation in runs)
    return partial(walk_ahead, uploads, steps, gpu)


def _on_cores(program: Program, sessions: Sessions, memory: Memory) -> Walk:
    own = [(i, run) for i, run in enumerate(program.runs) if run.device == 0]
    steps = [Step(run.waits, computation(*sessions[i], run, memory), _tells(i, run)) for i, run in own]
    return partial(walk, tuple(steps))


def _tells(index: int, run: Run) -> int | None:
    """The gate that a run opens."""
    return index if run.feeds else None


def _input(program: Program, memory: Memory, name: str) -> Array:
    """Where an input is copied to, in its own order of axes."""
    turned = program.turned.get(name)
    if turned is None:
        return memory.array(name)
    return memory.array(turned.name).transpose(np.argsort(turned.axes))


def computation(session: Any, names: Mapping[str, str], run: Run, memory: Memory) -> Callable[[], None]:
    """A session bound to a run's tensors, ready to compute.

    Args:
        session: Of the run's operators.
        names: What the session calls the graph's tensors.
        run: Which of them.
        memory: Where they are.
    """
    binding = session.io_binding()
    for name in run.inputs:
        binding.bind_input(names[name], *memory.bind(name))
    for name in run.outputs:
        binding.bind_output(names[name], *memory.bind(name))
    return call(session, binding)
