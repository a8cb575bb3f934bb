"""Scheduling problems: recurrent layers unrolled in time, and graphs of chance."""

from __future__ import annotations

import random

from ensemble_runtime.partition.instance import Flow, Instance, Link, Task


def stacked(
    layers: int, chunks: int, *, speed: float = 1.0, latency: float = 0.0001, home: int | None = None
) -> Instance:
    """A recurrent stack: chunk t of layer l needs chunk t - 1 of its layer and chunk t of the layer below.

    Args:
        layers: Each has weights of its own, a megabyte, shared by its chunks.
        chunks: Of time steps; one takes a millisecond on device 1.
        speed: How many times faster device 0 is.
        latency: Of the link, both ways.
        home: Where inputs and outputs are.
    """
    tasks, flows = [], []
    for layer in range(layers):
        for chunk in range(chunks):
            tasks.append(Task(f"layer{layer}.{chunk}", (0.001 / speed, 0.001), (f"weights{layer}",), 1000))
            index = layer * chunks + chunk
            above = [index + chunks] if layer + 1 < layers else []
            following = [index + 1] if chunk + 1 < chunks else []
            flows.append(Flow(f"out{layer}.{chunk}", 4000, index, tuple(following + above), not above))
    flows.append(Flow("x", 4000, None, tuple(range(chunks))))
    weights = {f"weights{layer}": 1_000_000 for layer in range(layers)}
    return Instance(tuple(tasks), tuple(flows), weights, (Link(latency, 1e-10), Link(latency, 1e-10)), home)


def chance(seed: int, count: int) -> Instance:
    """A graph of chance: layered, loose, gridlike or nearly without edges; equal or very different devices."""
    random_ = random.Random(seed)
    density = random_.choice([0.05, 0.15, 0.3])
    grid = random_.random() < 0.25
    ratios = random_.choice([[1.0], [0.2, 0.5, 1.0, 2.0, 5.0]])
    after: list[set[int]] = [set() for _ in range(count)]
    for j in range(1, count):
        for i in range(j):
            if (i in (j - 1, j - 3)) if grid else random_.random() < density:
                after[i].add(j)
    groups = max(1, count // random_.choice([1, 2, 3]))
    tasks = []
    for i in range(count):
        seconds = random_.expovariate(1) + 0.05
        other = seconds * random_.choice(ratios) * random_.uniform(0.9, 1.1)
        tasks.append(Task(f"t{i}", (seconds, other), (f"w{i % groups}",), random_.randrange(100)))
    flows = [Flow(f"f{i}", random_.randrange(1, 1000), i, tuple(sorted(after[i])), not after[i]) for i in range(count)]
    first = tuple(i for i in range(count) if not any(i in found for found in after))
    flows.append(Flow("x", random_.randrange(1, 1000), None, first))
    latency = random_.choice([0.0, 0.05, 0.3, 1.0])
    links = Link(latency, latency / 2000), Link(latency, latency / 3000)
    weights = {f"w{i}": random_.randrange(100, 10_000) for i in range(groups)}
    return Instance(tuple(tasks), tuple(flows), weights, links, random_.choice([None, 1]))
