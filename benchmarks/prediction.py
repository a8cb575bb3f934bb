"""Whether plans keep their promise on real members: predicted against measured throughput on this machine's cores."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
ROWS, CONNECTIONS = 8, 16
WARM = 1.0
ALIKE = 1.05
"""Where runs differ by more than this factor there is one more."""
DISTURBED, REPEATS = 0.03, 10
"""A run is repeated if others take more of the machine than this; so many repeats in all."""
SUBSETS = ((0, 1, 2, 3, 4), (2, 3, 4), (0, 4), (3,))
"""Of the members: each has the planner's plan, and some that it would not choose."""
OTHERS = 3
MEDIAN, WORST = 0.10, 0.20

Batches = tuple[tuple[int, ...], ...]


def prediction(effort: Effort) -> Report:
    """The relative error of every plan, served with either hosting."""
    errors: dict[Hosting, list[float]] = {hosting: [] for hosting in Hosting}
    clients: list[float] = []
    spare = iter(range(REPEATS))
    with tempfile.TemporaryDirectory() as folder:
        members = [member(path) for path in convolutional(Path(folder), WIDTHS)]
        devices = [core_device(core) for core in cores()]
        profiles, factors = _costs(members, devices)
        rows = []
        for name, problem, batches in _plans(members, devices, profiles, factors):
            predicted = _rate(problem, batches)
            config = _configuration(members, devices, problem, batches, predicted)
            row = [name, "; ".join(" ".join(map(str, row)) for row in batches), f"{predicted:.1f}"]
            for hosting, (reached, client) in _measured(config, effort, spare).items():
                clients.append(client)
                errors[hosting].append(predicted / reached - 1)
                row += [f"{reached:.1f}", f"{errors[hosting][-1]:+.1%}"]
            progress("; ".join(row))
            rows.append(row)
    for label, figure, aim in (("median of the errors", median, MEDIAN), ("worst error", max, WORST)):
        found = [figure(map(abs, errors[hosting])) for hosting in Hosting]
        figures = [f"{value:.1%} ({verdict(value, aim, at_most=True)})" for value in found]
        rows.append([label, "", "", *(cell for figure_ in figures for cell in ("", figure_))])
    return Report(
        f"Plans of TorchScript CNNs on 3 x 64 x 64 images (widths {', '.join(map(str, WIDTHS))}) on {len(devices)} "
        f"devices of one core each, predicted from profiles (a member on one core, while the others run it, too) and "
        f"pair factors ({min(factors.values()):.2f} to {max(factors.values()):.2f}, at the middle batch size) measured "
        f"once, before all plans; matrices are devices; members, 0 = no cell. Requests of {ROWS} rows, {CONNECTIONS} "
        f"connections, client on the same cores ({min(clients):.1%} to {max(clients):.1%} of their time); answers "
        f"within {effort.seconds:g} s after {WARM:g} s of warm-up, medians of {effort.rounds} runs, in turn with those "
        f"of the other hosting, and of one more where they differ by more than {ALIKE - 1:.0%}: the machine has slow "
        f"moments of some seconds. Where other processes took more than {DISTURBED:.0%} of it meanwhile, the run was "
        f"repeated ({REPEATS} repeats at the most).",
        ["plan", "matrix", "predicted rows/s", *(title for h in Hosting for title in (f"measured, {h}", "error"))],
        rows,
    )


def _measured(config: RuntimeConfig, effort: Effort, spare: Iterator[int]) -> dict[Hosting, tuple[float, float]]:
    """With each hosting, rows per second of the live runtime and the client's share of the machine."""
    body = np.random.default_rng(0).random((ROWS, *IMAGE_INPUT.shape), dtype=np.float32)
    found: dict[Hosting, list[tuple[float, float]]] = {hosting: [] for hosting in Hosting}
    with ExitStack() as servers:
        bases = {}
        for hosting in Hosting:
            served = config.model_copy(update={"serving": Serving(hosting=hosting)})
            bases[hosting], _ = servers.enter_context(runtime(served))

        def run(hosting: Hosting) -> None:
            target = infer(bases[hosting], config.name, body)
            load = throughput(target, CONNECTIONS, effort.seconds, WARM)
            found[hosting].append(_undisturbed(load, bases[hosting], spare))

        for _ in range(effort.rounds):
            for hosting in Hosting:
                run(hosting)
        for hosting, runs in found.items():
            if max(runs)[0] > ALIKE * min(runs)[0]:
                progress(f"{hosting}: {', '.join(f'{ROWS * rate:.1f}' for rate, _ in runs)} rows/s, once more")
                run(hosting)
    return {h: (ROWS * median(rate for rate, _ in runs), median(c for _, c in runs)) for h, runs in found.items()}


def _undisturbed(load: Callable[[], float], base: str, spare: Iterator[int]) -> tuple[float, float]:
    """A run's figure and the client's share of the machine; again where others disturbed it."""
    tries = [_beside_others(load, base)]
    while min(tries)[0] > DISTURBED and next(spare, None) is not None:
        progress(f"others took {tries[-1][0]:.1%} of the machine: once more")
        tries.append(_beside_others(load, base))
    _, figure, client = min(tries)
    return figure, client


def _beside_others(run: Callable[[], float], base: str) -> tuple[float, float, float]:
    """The share of the machine's time that went to others than server and client; the figure; the client's share."""
    (used, passed), own, client = _machine_seconds(), _own_seconds(base), _client_seconds()
    figure = run()
    then_used, then_passed = _machine_seconds()
    lasted, clients = then_passed - passed, _client_seconds() - client
    others = then_used - used - (_own_seconds(base) - own) - clients
    return others / lasted, figure, clients / lasted


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


def _costs(
    members: Sequence[Member], devices: Sequence[Device]
) -> tuple[dict[str, Profile], dict[tuple[str, str, str], float]]:
    """Profiles by member, and the factors of all pairs, as `ensemblectl profile` takes them."""
    device = devices[0]
    plain = {
        "members": [_json(m) for m in members],
        "inputs": [_json(IMAGE_INPUT)],
        "outputs": [_json(CLASSES_OUTPUT)],
    }
    points = _points(plain | {"devices": [_json(device)], "batchSizes": SIZES, "peers": [_json(d) for d in devices]})
    pairs = list(combinations([m.name for m in members], 2))
    sizes = {m.name: SIZES[len(SIZES) // 2] for m in members}
    side_by_side = plain | {"device": _json(device), "batchSizes": sizes, "pairs": pairs}
    factors = {
        (device.type, r["member"], r["otherMember"]): r["factor"]
        for r in records("interference", document=side_by_side)
    }
    progress(f"factors from {min(factors.values()):.3f} to {max(factors.values()):.3f}")
    return {n: Profile(n, device.type, "FP32", tuple(found.values())) for n, found in points.items()}, factors


def _points(request: Mapping[str, object]) -> dict[str, dict[int, Point]]:
    """What the profiler measures, by member and batch size; of one size the last counts."""
    points: dict[str, dict[int, Point]] = {}
    name = ""
    for record in records("profile", document=request):
        if "seconds" in record:
            point = Point(record["batchSize"], record["seconds"], record["memoryBytes"])
            points.setdefault(name, {})[point.batch_size] = point
        else:
            name = record["member"]
    progress(str({n: [f"{p.seconds * 1e3:.2f}" for p in found.values()] for n, found in points.items()}))
    return points


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
    main(prediction, seconds=1.5, rounds=2)
