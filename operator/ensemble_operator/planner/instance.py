"""A problem as numbers: what every algorithm of the planner works on.

Devices and members are put into one canonical order, so that the order in which they were listed cannot change a plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Point
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import ManifestError, OutOfMemoryError

Matrix = npt.NDArray[np.int16]
"""Devices x members in canonical order: 0 = no worker, k = the member's option k - 1 on that device type."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RANK = {DeviceKind.GPU: 0, DeviceKind.SIMULATED: 1, DeviceKind.CPU: 2}


@dataclass(frozen=True)
class Instance:
    """The numbers of a problem. T device types (devices alike but for name and node), M members, K options.

    An option of a member on a type is a batch size; options rise in memory and fall in seconds per row, for a batch
    size that costs more memory and is no faster is never worth having when rows per second count.
    """

    problem: Problem
    device_order: tuple[int, ...]
    member_order: tuple[int, ...]
    type_of: Ints
    """(D,) the type of each device."""
    node_of: Ints
    """(D,) the node of each device."""
    capacity: Ints
    """(T,) bytes of a device of the type."""
    is_cpu: npt.NDArray[np.bool_]
    """(T,) whether the type is a set of CPU cores: packing turns to these last."""
    options: Ints
    """(T, M) how many options there are; 0: the type cannot run the member."""
    batch: Ints
    """(T, M, K) rows of a batch."""
    seconds: Floats
    """(T, M, K) seconds per row at full batches; infinite beyond the options."""
    memory: Ints
    """(T, M, K) bytes of the cell."""
    factor: Floats
    """(T, M, M) interference factors; 1 where none was measured, and where `lost` has it."""
    lost: Floats
    """(T, M, M) seconds that a batch of the one takes longer after a batch of the other. Cores run one batch at a time:
    what it costs to change, in caches and between processes, is the same whatever the size of the batches."""

    @property
    def shape(self) -> tuple[int, int]:
        """Devices and members."""
        return len(self.device_order), len(self.member_order)

    @cached_property
    def counts(self) -> Ints:
        """(T,) devices of each type."""
        return np.bincount(self.type_of, minlength=len(self.capacity))

    @cached_property
    def nodes(self) -> int:
        """How many nodes the devices are on."""
        return int(self.node_of.max()) + 1

    @cached_property
    def interferes(self) -> bool:
        """Whether any factor differs from 1."""
        return bool((self.factor != 1).any())

    @cached_property
    def loses(self) -> bool:
        """Whether a change between members costs anything."""
        return bool(self.lost.any())

    @cached_property
    def running(self) -> Matrix:
        """The running cells as a matrix; a batch size that is no option any more counts as another one (-1)."""
        matrix = np.zeros(self.shape, np.int16)
        if not self.problem.running:
            return matrix
        devices = {(d.node, d.name): i for i, d in enumerate(self.devices)}
        members = {self.problem.members[j].name: i for i, j in enumerate(self.member_order)}
        for (node, device, member), batch in self.problem.running.items():
            row, column = devices.get((node, device)), members.get(member)
            if row is None or column is None:
                continue
            kind = self.type_of[row]
            known = self.batch[kind, column, : self.options[kind, column]].tolist()
            matrix[row, column] = known.index(batch) + 1 if batch in known else -1
        return matrix

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices in canonical order."""
        return tuple(self.problem.devices[i] for i in self.device_order)

    def bytes_used(self, matrix: Matrix) -> Ints:
        """(D,) bytes that the cells of each device take."""
        rows, columns = np.nonzero(matrix)
        held = self.memory[self.type_of[rows], columns, matrix[rows, columns] - 1]
        return np.bincount(rows, weights=held, minlength=len(matrix)).astype(np.int64)

    def fits(self, matrix: Matrix) -> bool:
        """Whether no device is over its memory and every member has a cell."""
        return bool((self.bytes_used(matrix) <= self.capacity[self.type_of]).all() and (matrix != 0).any(axis=0).all())

    def batches(self, matrix: Matrix) -> tuple[tuple[int, ...], ...]:
        """The matrix with batch sizes for options, in the order in which the problem lists devices and members."""
        out = np.zeros(self.shape, np.int64)
        rows, columns = np.nonzero(matrix)
        sizes = self.batch[self.type_of[rows], columns, matrix[rows, columns] - 1]
        out[np.asarray(self.device_order)[rows], np.asarray(self.member_order)[columns]] = sizes
        return tuple(tuple(row) for row in out.tolist())

    def matrix(self, batches: Sequence[Sequence[int]]) -> Matrix:
        """The inverse of `batches`."""
        out = np.zeros(self.shape, np.int16)
        sizes = np.asarray(batches, np.int64)[np.ix_(self.device_order, self.member_order)]
        for d, m in zip(*np.nonzero(sizes), strict=True):
            out[d, m] = int(np.flatnonzero(self.batch[self.type_of[d], m] == sizes[d, m])[0]) + 1
        return out


def build(problem: Problem, *, every_batch: bool = False) -> Instance:
    """Put a problem into numbers.

    Args:
        problem: Devices, members and their profiles.
        every_batch: Keep batch sizes that cost memory and raise no throughput; latency can want them.

    Returns:
        The instance, in canonical order.

    Raises:
        ManifestError: A member has no profile on any of the devices, or a profile makes no sense.
        OutOfMemoryError: A member is larger than every device that could run it.
    """
    devices = sorted(range(len(problem.devices)), key=lambda i: _device_key(problem.devices[i]))
    ordered = [problem.devices[i] for i in devices]
    members = sorted(range(len(problem.members)), key=lambda i: problem.members[i].name)
    kinds: dict[tuple[str, str, int], int] = {}
    for device in ordered:
        kinds.setdefault((device.kind.value, device.type, device.memory_bytes), len(kinds))
    points = [[_options(problem.members[j], type_, memory, every_batch) for j in members] for _, type_, memory in kinds]
    for column, j in enumerate(members):
        if not any(row[column] for row in points):
            _refuse(problem.members[j], ordered)
    nodes = {node: i for i, node in enumerate(sorted({d.node for d in problem.devices}))}
    most = max(len(p) for row in points for p in row)
    shape = (len(kinds), len(members), most)
    batch, memory = np.zeros(shape, np.int64), np.full(shape, 2**62, np.int64)
    seconds = np.full(shape, np.inf)
    for t, row in enumerate(points):
        for m, column_points in enumerate(row):
            for k, point in enumerate(column_points):
                batch[t, m, k], memory[t, m, k] = point.batch_size, point.memory_bytes
                seconds[t, m, k] = point.seconds / point.batch_size
    factor, lost = _factors(problem, list(kinds), members)
    return Instance(
        problem=problem,
        device_order=tuple(devices),
        member_order=tuple(members),
        type_of=np.array([kinds[d.kind.value, d.type, d.memory_bytes] for d in ordered]),
        node_of=np.array([nodes[d.node] for d in ordered]),
        capacity=np.array([memory_ for _, _, memory_ in kinds]),
        is_cpu=np.array([kind == DeviceKind.CPU for kind, _, _ in kinds]),
        options=np.array([[len(p) for p in row] for row in points]),
        batch=batch,
        seconds=seconds,
        memory=memory,
        factor=factor,
        lost=lost,
    )


def _device_key(device: Device) -> tuple[int, str, int, str, str]:
    return _RANK[device.kind], device.type, -device.memory_bytes, device.node, device.name


def _options(member: PlanMember, type_: str, memory: int, every_batch: bool) -> list[Point]:
    profile = member.profiles.get(type_)
    points = profile.points if profile else ()
    for point in points:
        if point.batch_size < 1 or not 0 < point.seconds < math.inf or point.memory_bytes < 0:
            raise ManifestError(
                f"profile of member '{member.name}' on '{type_}': {point} makes no sense; measure it again"
            )
    fitting = sorted((p for p in points if p.memory_bytes <= memory), key=lambda p: (p.memory_bytes, _per_row(p)))
    if every_batch:
        return fitting
    kept: list[Point] = []
    for point in fitting:
        if not kept or _per_row(point) < _per_row(kept[-1]):
            kept.append(point)
    return kept


def _per_row(point: Point) -> float:
    return point.seconds / point.batch_size


def _refuse(member: PlanMember, devices: list[Device]) -> NoReturn:
    able = [d for d in devices if d.type in member.profiles and member.profiles[d.type].points]
    if not able:
        types = ", ".join(sorted({d.type for d in devices}))
        raise ManifestError(
            f"member '{member.name}': no profile on any of the device types {types}; "
            "profile it there, or permit a device kind that it has a profile for"
        )
    need = {d.type: min(p.memory_bytes for p in member.profiles[d.type].points) for d in able}
    nearest = min(able, key=lambda d: need[d.type] - d.memory_bytes)
    least, have = need[nearest.type], nearest.memory_bytes
    raise OutOfMemoryError(
        f"member '{member.name}' needs {mib(least)} MiB at its smallest batch size; device '{nearest.name}' has "
        f"{mib(have)} MiB: short of {mib(least - have)} MiB"
    )


def mib(count: int) -> int:
    """Bytes in whole MiB, rounded up."""
    return -(-count // 2**20)


def _factors(problem: Problem, kinds: list[tuple[str, str, int]], order: list[int]) -> tuple[Floats, Floats]:
    """Factors, and of cores that members slow down for each other what a batch loses."""
    factor = np.ones((len(kinds), len(order), len(order)))
    lost = np.zeros(factor.shape)
    members = [problem.members[j] for j in order]
    column = {member.name: i for i, member in enumerate(members)}
    for (type_, one, other), value in problem.interference.items():
        if one not in column or other not in column:
            continue
        pair = [column[one], column[other]], [column[other], column[one]]
        profiles = [members[i].profiles[type_] for i in pair[0] if type_ in members[i].profiles]
        for t, (kind, name, _) in enumerate(kinds):
            if name == type_ and kind == DeviceKind.CPU and value < 1 and len(profiles) == 2:
                lost[t][pair] = sum(profile.middle.seconds for profile in profiles) * (1 / value - 1) / 2
            elif name == type_:
                factor[t][pair] = value
    return factor, lost
