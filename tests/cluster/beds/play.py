"""`make cluster-demo` and `make cluster-shell`: a cluster on this machine with the chart and the digits example in it.

Runs inside an enclosure, with `demo` or `shell`; Ctrl-D ends the shell, and with it everything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "digits"))

import numpy as np
from report import Accuracies, accuracy
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from beds import binaries, enclosure
from beds.cluster import Cluster
from beds.machines import Machines
from beds.quick_start import ENSEMBLE, Answers, HeldOut, QuickStart

SIDE, WHITE = 8, 16
GREYS = " ░▒▓█"
DRAWN = 4
"""Images that are shown."""


def main(mode: str) -> int:
    """Bring it up, install, apply, show; in `shell` mode hand it over then."""
    console = Console(highlight=False)
    programs = binaries.provide(enclosure.PROGRAMS, _say)
    with tempfile.TemporaryDirectory() as place:
        _say("two nodes, Services, DNS")
        with Machines(programs, enclosure.archives(), Path(place) / "bed") as machines:
            _say("helm install ensembles charts/ensembles")
            cluster = Cluster.installed(machines, programs["helm"])
            try:
                _serve(QuickStart(machines, "default"), console)
            except subprocess.CalledProcessError as error:
                print(f"{error.stderr}\n{cluster.report()}")
                raise
            if mode == "shell":
                _shell(machines)
    return 0


def _serve(quick_start: QuickStart, console: Console) -> None:
    quick_start.train()
    quick_start.provide()
    _say("the quick start of docs/install.md")
    quick_start.follow(lambda line, said: print(f"\n$ {line}\n{said}", end="", flush=True))
    held_out = quick_start.held_out()
    answers, expected = quick_start.ask(held_out), quick_start.compute(held_out)
    console.print("", accuracy(_accuracies(held_out, answers)), "", _disagreements(held_out, answers), sep="\n")
    difference = max(float(np.abs(answers[name] - expected[name]).max()) for name in expected)
    console.print("\nAll of this was asked through the Service. With the same files, ONNX Runtime and numpy", end=" ")
    console.print(f"differ by {difference:.0e} at most." if difference else "say the same, to the last bit.")


def _accuracies(held_out: HeldOut, answers: Answers) -> Accuracies:
    right = {name: held_out.accuracy(each) for name, each in answers.items()}
    ensemble = right.pop(ENSEMBLE)
    return Accuracies(len(held_out.digits), ensemble, right, dict.fromkeys(right, "ONNX"))


def _disagreements(held_out: HeldOut, answers: Answers) -> Group:
    """The first images that not all members take for the same digit, and what each says."""
    guesses = np.stack([each.argmax(axis=1) for each in answers.values()])
    (split,) = np.nonzero((guesses != guesses[0]).any(axis=0))
    title = Text(f"About {len(split)} of them the members disagree, e.g.\n", style="bold italic")
    return Group(title, Columns([_drawing(held_out, answers, i) for i in split[:DRAWN]], padding=(0, 3)))


def _drawing(held_out: HeldOut, answers: Answers, i: int) -> Text:
    rows = held_out.pixels[i].reshape(SIDE, SIDE)
    shades = (rows / WHITE * (len(GREYS) - 1)).round().astype(int)
    lines = ["".join(2 * GREYS[shade] for shade in row) for row in shades]
    digit = held_out.digits[i]
    said = [(name, each[i].argmax(), each[i].max()) for name, each in answers.items()]
    marks = [f"{name:<9}{guess} {share:4.0%}{' ✓' if guess == digit else ''}" for name, guess, share in said]
    return Text("\n".join([*lines, f"shows    {digit}", *marks]))


def _shell(machines: Machines) -> None:
    print("\nkubectl and helm speak to the cluster; Ctrl-D ends it.", flush=True)
    subprocess.run(["bash", "--norc"], env=machines.environment() | {"PS1": "cluster$ "})


def _say(line: str) -> None:
    print(f"▶ {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
