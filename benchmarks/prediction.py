"""Whether plans keep their promise on real members: predicted against measured throughput on this machine's cores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
from common import Effort, Report, cores, main, progress, verdict
from configurations import core_device
from load import infer, throughput
from models import CLASSES_OUTPUT, IMAGE_INPUT, convolutional, member
from serving import runtime

from ensemble_operator.inventory.device import Device as PlannedDevice
from ensemble_operator.inventory.runtime_command import records
from ensemble_operator.planner.instance import build
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.planner.score import score
from ensemble_operator.planner.solve import make_plan
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import Cell, Device, DeviceKind, Hosting, Member, RuntimeConfig, Schema, Serving

WIDTHS = (8, 12, 18, 26, 36)
SIZES = (1, 2, 4, 8, 16)
ROWS, CONNECTIONS = 16, 8
WARM = 3.0
SUBSETS = ((0, 1, 2, 3, 4), (2, 3, 4), (0, 4), (3,))
"""Of the members: each has the planner's plan, and some that it would not choose."""
OTHERS = 3
MEDIAN, WORST = 0.10, 0.20

Batches = tuple[tuple[int, ...], ...]


def prediction(effort: Effort) -> Report:
    """The relative error of every plan, with interference as it was measured and without."""
    with tempfile.TemporaryDirectory() as folder:
        paths = convolutional(Path(folder), WIDTHS)
        members = [member(path) for path in paths]
        devices = [core_device(core) for core in cores()]
        profiles, factors = _costs(members, devices[0])
        rows, errors = [], []
        for name, problem, batches in _plans(members, devices, profiles, factors):
            predicted = _rate(problem, batches)
            blind = _rate(Problem(problem.devices, problem.members), batches)
            config = _configuration(members, devices, problem, batches, predicted)
            body = np.random.default_rng(0).random((ROWS, *IMAGE_INPUT.shape), dtype=np.float32)
            with runtime(config) as (base, _):
                run = throughput(infer(base, config.name, body), CONNECTIONS, effort.seconds, WARM)
                reached = ROWS * median(run() for _ in range(effort.rounds))
            errors.append(abs(predicted / reached - 1))
            progress(f"{name}: predicted {predicted:.1f}, measured {reached:.1f} rows/s")
            matrix = "; ".join(" ".join(map(str, row)) for row in batches)
            rows.append(
                [
                    name,
                    matrix,
                    f"{predicted:.1f}",
                    f"{reached:.1f}",
                    f"{predicted / reached - 1:+.1%}",
                    f"{blind / reached - 1:+.1%}",
                ]
            )
    middle, worst = median(errors), max(errors)
    rows.append(["median of the errors", "", "", "", f"{middle:.1%} ({verdict(middle, MEDIAN, at_most=True)})", ""])
    rows.append(["worst error", "", "", "", f"{worst:.1%} ({verdict(worst, WORST, at_most=True)})", ""])
    return Report(
        f"Plans of TorchScript CNNs on 3 x 64 x 64 images (widths {', '.join(map(str, WIDTHS))}) on {len(devices)} "
        f"devices of one core each, predicted from profiles and pair factors ({min(factors.values()):.2f} to "
        f"{max(factors.values()):.2f}) measured just before; matrices are devices; members, 0 = no cell. Requests of "
        f"{ROWS} rows, {CONNECTIONS} connections, client on the same cores, medians of {effort.rounds} runs of "
        f"{effort.seconds:g} s.",
        ["plan", "matrix", "predicted rows/s", "measured rows/s", "error", "without pair factors"],
        rows,
    )


def _costs(members: Sequence[Member], device: Device) -> tuple[dict[str, Profile], dict[tuple[str, str, str], float]]:
    """Profiles by member, and the factors of all pairs."""
    plain = {
        "members": [_json(m) for m in members],
        "inputs": [_json(IMAGE_INPUT)],
        "outputs": [_json(CLASSES_OUTPUT)],
    }
    request = plain | {"devices": [_json(device)], "batchSizes": SIZES}
    points: dict[str, list[Point]] = {m.name: [] for m in members}
    name = ""
    for record in records("profile", document=request):
        if "seconds" in record:
            points[name].append(Point(record["batchSize"], record["seconds"], record["memoryBytes"]))
        else:
            name = record["member"]
    progress("profiles measured")
    pairs = list(combinations([m.name for m in members], 2))
    sizes = {m.name: SIZES[-2] for m in members}
    request = plain | {"device": _json(device), "batchSizes": sizes, "pairs": pairs}
    factors = {
        (device.type, r["member"], r["otherMember"]): r["factor"] for r in records("interference", document=request)
    }
    progress(f"factors from {min(factors.values()):.3f} to {max(factors.values()):.3f}")
    return {n: Profile(n, device.type, "FP32", tuple(found)) for n, found in points.items()}, factors


def _plans(
    members: Sequence[Member],
    devices: Sequence[Device],
    profiles: dict[str, Profile],
    factors: dict[tuple[str, str, str], float],
) -> Iterator[tuple[str, Problem, Batches]]:
    """The planner's own plan for each subset of the members, and random ones beside it."""
    random = np.random.default_rng(0)
    machines = tuple(PlannedDevice(d.name, "here", DeviceKind.CPU, d.type, d.memory_bytes, d.cores) for d in devices)
    for subset in SUBSETS:
        chosen = tuple(PlanMember(members[i].name, {devices[0].type: profiles[members[i].name]}) for i in subset)
        problem = Problem(machines, chosen, interference=factors)
        label = f"{len(subset)} member" + "s" * (len(subset) > 1)
        yield f"{label}, the planner's", problem, make_plan(problem).matrix
        for i in range(OTHERS):
            yield f"{label}, random {i + 1}", problem, _random(random, len(machines), len(subset))


def _random(random: np.random.Generator, devices: int, members: int) -> Batches:
    """Any matrix in which every member has a cell."""
    while True:
        matrix = random.choice(SIZES, (devices, members)) * (random.random((devices, members)) < 0.7)
        if (matrix != 0).any(axis=0).all():
            return tuple(tuple(map(int, row)) for row in matrix)


def _rate(problem: Problem, batches: Batches) -> float:
    instance = build(problem, every_batch=True)
    return score(instance, instance.matrix(batches)).steady.rate


def _configuration(
    members: Sequence[Member], devices: Sequence[Device], problem: Problem, batches: Batches, predicted: float
) -> RuntimeConfig:
    names = [m.name for m in problem.members]
    cells = [
        Cell(device=device.name, member=name, batch_size=size)
        for device, row in zip(devices, batches, strict=True)
        for name, size in zip(names, row, strict=True)
        if size
    ]
    return RuntimeConfig(
        name="cnn",
        members=tuple(m for m in members if m.name in names),
        inputs=(IMAGE_INPUT,),
        outputs=(CLASSES_OUTPUT,),
        devices=tuple(d for d in devices if any(cell.device == d.name for cell in cells)),
        cells=tuple(cells),
        serving=Serving(hosting=Hosting.PER_CELL),
        predicted_rows_per_second=predicted,
    )


def _json(document: Schema) -> object:
    return document.model_dump(mode="json", by_alias=True)


if __name__ == "__main__":
    main(prediction, seconds=6, rounds=1)
