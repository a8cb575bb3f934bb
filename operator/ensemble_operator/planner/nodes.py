"""How many nodes are worth it: each one that an ensemble crosses to must raise the rate by `node_cost`."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ensemble_operator.planner.exact import relaxed
from ensemble_operator.planner.instance import Floats, Instance, Ints, Matrix


def restrict(instance: Instance, devices: Ints) -> Instance:
    """The same problem with some of the devices only, given by their places in canonical order."""
    return dataclasses.replace(
        instance,
        device_order=tuple(instance.device_order[d] for d in devices),
        type_of=instance.type_of[devices],
        node_of=instance.node_of[devices],
    )


def widen(instance: Instance, devices: Ints, matrix: Matrix) -> Matrix:
    """A matrix of the restricted problem as one of the whole."""
    whole = np.zeros(instance.shape, np.int16)
    whole[devices] = matrix
    return whole


def worthwhile(instance: Instance) -> Ints:
    """The devices of the nodes that are worth crossing to, by the relaxed rate of growing sets of nodes."""
    every = np.arange(len(instance.type_of))
    cost = instance.problem.node_cost
    if instance.nodes == 1 or cost == 0:
        return every
    value = _value(instance)
    nodes = np.argsort(-np.bincount(instance.node_of, weights=value[instance.type_of]), kind="stable")
    best, kept = -math.inf, every
    for count in sorted({max(1, round(len(nodes) * 0.8**i)) for i in range(24)}):
        devices = np.flatnonzero(np.isin(instance.node_of, nodes[:count]))
        rate = _relaxed_rate(restrict(instance, devices))
        worth = math.log(rate) - cost * (count - 1) if rate > 0 else -math.inf
        if worth > best:
            best, kept = worth, devices
    return kept


def _value(instance: Instance) -> Floats:
    """(T,) speed of a device of the type, averaged over the members, each against its fastest type."""
    speed = 1.0 / instance.seconds.min(axis=2)
    value: Floats = (speed / speed.max(axis=0)).mean(axis=1)
    return value


def _relaxed_rate(instance: Instance) -> float:
    able = (instance.options > 0) & (instance.counts > 0)[:, None]
    if not able.any(axis=0).all():
        return 0.0
    try:
        return relaxed(instance).bound
    except ValueError:
        return 0.0
