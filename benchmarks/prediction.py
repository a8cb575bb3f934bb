"""Whether plans keep their promise on real members: predicted against measured throughput on this machine's cores."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, median

import numpy as np
from bare_members import BareMembers, bare_members, loaders
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
ROWS, CONNECTIONS = 8, 16
WARM = 1.5
BARE_BATCH, BARE_ROWS, BARE_SECONDS = 8, 256, 0.5
"""Of the models run bare, to see how fast the machine is."""
DISTURBED, REPEATS = 0.03, 10
"""A run is repeated if others take more of the machine than this; so many repeats in all."""
SUBSETS = ((0, 1, 2, 3, 4), (2, 3, 4), (0, 4), (3,))
"""Of the members: each has the planner's plan, and some that it would not choose."""
OTHERS = 3
MEDIAN, WORST = 0.10, 0.20

Batches = tuple[tuple[int, ...], ...]


def prediction(effort: Effort) -> Report:
    """The relative error of every plan, served with either hosting: as predicted, and at the machine's speed then."""
    plain: dict[Hosting, list[float]] = {hosting: [] for hosting in Hosting}
    errors: dict[Hosting, list[float]] = {hosting: [] for hosting in Hosting}
    speeds: list[float] = []
    spare = iter(range(REPEATS))
    pool = np.random.default_rng(1).random((BARE_ROWS, *IMAGE_INPUT.shape), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = convolutional(Path(folder), WIDTHS)
        members = [member(path) for path in paths]
        devices = [core_device(core) for core in cores()]
        profiles, factors = _costs(members, devices[0])
        rows = []
        with bare_members(paths, loaders(IMAGE_INPUT)["the runtime's"], pool, cores()) as bare:
            machine = _Machine(bare, [profiles[m.name] for m in members])
            for name, problem, batches in _plans(members, devices, profiles, factors):
                predicted = _rate(problem, batches)
                config = _configuration(members, devices, problem, batches, predicted)
                row = [name, "; ".join(" ".join(map(str, row)) for row in batches), f"{predicted:.1f}"]
                for hosting in Hosting:
                    served = config.model_copy(update={"serving": Serving(hosting=hosting)})
                    reached, speed = _measured(served, effort, spare, machine)
                    speeds.append(speed)
                    plain[hosting].append(predicted / reached - 1)
                    errors[hosting].append(predicted * speed / reached - 1)
                    row += [
                        f"{reached:.1f}",
                        f"{plain[hosting][-1]:+.1%}",
                        f"{speed:.2f}",
                        f"{errors[hosting][-1]:+.1%}",
                    ]
                progress("; ".join(row))
                rows.append(row)
    for label, figure, aim in (("median of the errors", median, MEDIAN), ("worst error", max, WORST)):
        row = [label, "", ""]
        for hosting in Hosting:
            both = (figure(map(abs, found[hosting])) for found in (plain, errors))
            before, after = (f"{value:.1%} ({verdict(value, aim, at_most=True)})" for value in both)
            row += ["", before, "", after]
        rows.append(row)
    return Report(
        f"Plans of TorchScript CNNs on 3 x 64 x 64 images (widths {', '.join(map(str, WIDTHS))}) on {len(devices)} "
        f"devices of one core each, predicted from profiles (of two measurements the quicker) and pair factors "
        f"({min(factors.values()):.2f} to {max(factors.values()):.2f}, at the middle batch size) measured just before; "
        f"matrices are devices; members, 0 = no cell. Requests of {ROWS} rows, {CONNECTIONS} connections, client on "
        f"the same cores; answers within {effort.seconds:g} s after {WARM:g} s of warm-up. Where other processes took "
        f"more than {DISTURBED:.0%} of the machine meanwhile, the run was repeated ({REPEATS} repeats at the most). "
        f"Speed is what the machine had for the server then, as a share of what the profiles say: the models run bare, "
        f"in turn, on all cores at once just before and just after (profiles are of one core at a time, and the "
        f"machine's speed drifts), less the time that the client took; it was {min(speeds):.2f} to {max(speeds):.2f}.",
        [
            "plan",
            "matrix",
            "predicted rows/s",
            *(title for h in Hosting for title in (f"measured, {h}", "error", "speed", "error at that speed")),
        ],
        rows,
    )


@dataclass(frozen=True)
class _Machine:
    """What the machine can do at the moment, beside what it could when the profiles were made."""

    bare: BareMembers
    profiles: Sequence[Profile]

    def speed(self) -> float:
        """Rows/s of all models run bare on all cores, over what their profiles promise."""
        found = self.bare.rows_per_second([BARE_BATCH] * len(self.profiles), BARE_SECONDS)
        seconds = sum(point.seconds for x in self.profiles if (point := x.at(BARE_BATCH)))
        return found * seconds / (len(cores()) * BARE_BATCH)


def _measured(config: RuntimeConfig, effort: Effort, spare: Iterator[int], machine: _Machine) -> tuple[float, float]:
    """Rows per second of the live runtime, and the machine's speed; again where others disturbed it and may be."""
    body = np.random.default_rng(0).random((ROWS, *IMAGE_INPUT.shape), dtype=np.float32)
    with runtime(config) as (base, _):
        run = throughput(infer(base, config.name, body), CONNECTIONS, effort.seconds, WARM)
        tries = [_beside_others(run, base, machine)]
        while min(tries)[0] > DISTURBED and next(spare, None) is not None:
            progress(f"others took {tries[-1][0]:.1%} of the machine: once more")
            tries.append(_beside_others(run, base, machine))
        _, figure, speed = min(tries)
        return ROWS * figure, speed


def _beside_others(run: Callable[[], float], base: str, machine: _Machine) -> tuple[float, float, float]:
    """The share of the machine's time that went to others than server and client; the figure; the machine's speed."""
    before = machine.speed()
    (used, passed), own, client = _machine_seconds(), _own_seconds(base), _client_seconds()
    figure = run()
    then_used, then_passed = _machine_seconds()
    lasted, clients = then_passed - passed, _client_seconds() - client
    others = then_used - used - (_own_seconds(base) - own) - clients
    return others / lasted, figure, mean((before, machine.speed())) * (1 - clients / lasted)


def _machine_seconds() -> tuple[float, float]:
    """Of all cores since boot: seconds that processes, or other machines, had; and seconds in all (proc(5))."""
    times = [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in Path("/proc/stat").read_text().split()[1:9]]
    return sum(times[:3]) + times[7], sum(times)


def _own_seconds(base: str) -> float:
    """Processor seconds of the server's processes."""
    with urllib.request.urlopen(f"{base}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("ensemble_process_cpu_seconds_total"))


def _client_seconds() -> float:
    """Processor seconds of the clients that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _costs(members: Sequence[Member], device: Device) -> tuple[dict[str, Profile], dict[tuple[str, str, str], float]]:
    """Profiles by member, and the factors of all pairs."""
    plain = {
        "members": [_json(m) for m in members],
        "inputs": [_json(IMAGE_INPUT)],
        "outputs": [_json(CLASSES_OUTPUT)],
    }
    request = plain | {"devices": [_json(device)], "batchSizes": SIZES}
    first = _points(request)
    pairs = list(combinations([m.name for m in members], 2))
    sizes = {m.name: SIZES[len(SIZES) // 2] for m in members}
    side_by_side = plain | {"device": _json(device), "batchSizes": sizes, "pairs": pairs}
    factors = {
        (device.type, r["member"], r["otherMember"]): r["factor"]
        for r in records("interference", document=side_by_side)
    }
    progress(f"factors from {min(factors.values()):.3f} to {max(factors.values()):.3f}")
    # Whatever else the machine does can only lengthen a batch.
    again = _points(request)
    quicker = {n: tuple(min(pair, key=_seconds) for pair in zip(first[n], again[n], strict=True)) for n in first}
    progress(str({n: [f"{p.seconds * 1e3:.2f}" for p in points] for n, points in quicker.items()}))
    return {n: Profile(n, device.type, "FP32", points) for n, points in quicker.items()}, factors


def _points(request: Mapping[str, object]) -> dict[str, list[Point]]:
    """What the profiler measures, by member."""
    points: dict[str, list[Point]] = {}
    name = ""
    for record in records("profile", document=request):
        if "seconds" in record:
            points.setdefault(name, []).append(Point(record["batchSize"], record["seconds"], record["memoryBytes"]))
        else:
            name = record["member"]
    progress("profiles measured")
    return points


def _seconds(point: Point) -> float:
    return point.seconds


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
        predicted_rows_per_second=predicted,
    )


def _json(document: Schema) -> object:
    return document.model_dump(mode="json", by_alias=True)


if __name__ == "__main__":
    main(prediction, seconds=4, rounds=1)
