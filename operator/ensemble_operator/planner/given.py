"""A matrix that is there already, as a plan: what runs is judged as what is planned."""

from __future__ import annotations

from collections.abc import Mapping

from ensemble_operator.planner.baseline import baseline
from ensemble_operator.planner.exact import relaxed
from ensemble_operator.planner.instance import build
from ensemble_operator.planner.pack import pack
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.score import score
from ensemble_operator.planner.solve import finish
from ensemble_runtime.errors import ManifestError


def given_plan(problem: Problem, cells: Mapping[tuple[str, str, str], int]) -> Plan:
    """The plan that these cells are.

    Args:
        problem: Devices and members.
        cells: (node, device, member) -> batch size.

    Raises:
        ManifestError: A cell is of no device or member of the problem or has a batch size without a profile, or a
            member has no cell.
        OutOfMemoryError: The members do not fit into the devices, as they are known now.
    """
    places = {(device.node, device.name): i for i, device in enumerate(problem.devices)}
    columns = {member.name: i for i, member in enumerate(problem.members)}
    batches = [[0] * len(columns) for _ in places]
    for (node, device, member), size in cells.items():
        row, column = places.get((node, device)), columns.get(member)
        if row is None or column is None or size not in _sizes(problem, row, column):
            raise ManifestError(f"the cell of '{member}' at batch size {size} on {node}/{device} has no profile here")
        batches[row][column] = size
    if lacking := [name for name, column in columns.items() if not any(row[column] for row in batches)]:
        raise ManifestError(f"no cell serves {', '.join(lacking)}")
    instance, whole = build(problem, every_batch=True), build(problem)
    base = score(whole, baseline(whole, pack(whole)))
    return finish(instance, score(instance, instance.matrix(batches)), base.steady.rate, relaxed(whole).bound)


def _sizes(problem: Problem, row: int, column: int) -> set[int]:
    device = problem.devices[row]
    profile = problem.members[column].profiles.get(device.type)
    points = profile.points if profile else ()
    return {point.batch_size for point in points if point.memory_bytes <= device.memory_bytes}
