"""Trains five members if they are not there yet, serves them as one ensemble, and shows what it is worth.

The way is the one that a cluster takes: manifest, profiles, plan, RuntimeConfig, runtime. Ends with exit code 1 when
the ensemble is not the best of all.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from client import infer
from report import Accuracies, Findings, report
from rich.console import Console
from serving import ENSEMBLECTL, serving

HERE = Path(__file__).parent
OUTPUT = "probabilities"
IMAGES_A_REQUEST = 256
DRAWING_WIDTH = 88


def main() -> int:
    arguments = _arguments()
    manifest: Path = arguments.models / "ensemble.yaml"
    if not manifest.exists():
        _say("training the members")
        subprocess.run([sys.executable, HERE / "train.py", "--out", arguments.models], check=True)
    findings = find(manifest, arguments.models / "held-out.npz")
    Console().print(report(findings))
    if arguments.svg:
        drawing = Console(record=True, width=DRAWING_WIDTH, file=io.StringIO())
        drawing.print(report(findings))
        drawing.save_svg(str(arguments.svg), title="make demo")
    return 0 if findings.accuracies.ensemble_is_best else 1


def find(manifest: Path, held_out: Path) -> Findings:
    """Serve a manifest, ask it about the held-out images, put load on it, and stop it."""
    members = yaml.safe_load(manifest.read_text())["spec"]["members"]
    images = np.load(held_out)
    _say(f"ensemblectl up {manifest}")
    with serving(manifest) as served:
        _say(f"asking about {len(images['digit'])} held-out images, then ensemblectl bench {served.url}")
        right = {name: hits / len(images["digit"]) for name, hits in _hits(served.address, images).items()}
        rows_per_second = _throughput(served.url)
    _say("stopped; no process, socket or shared memory is left")
    accuracies = Accuracies(
        images=len(images["digit"]),
        ensemble=right[OUTPUT],
        members={member["name"]: right[f"{OUTPUT}@{member['name']}"] for member in members},
        formats={member["name"]: member["model"]["format"] for member in members},
    )
    return Findings(accuracies, served.plan, rows_per_second)


def _hits(address: tuple[str, int], images: dict[str, Any]) -> dict[str, int]:
    """For each output, the ensemble's and the members': how many images it takes for the digit they show."""
    hits: dict[str, int] = {}
    for start in range(0, len(images["digit"]), IMAGES_A_REQUEST):
        rows = slice(start, start + IMAGES_A_REQUEST)
        for name, probabilities in infer(address, "digits", images["image"][rows]).items():
            right = probabilities.argmax(axis=-1) == images["digit"][rows]
            hits[name] = hits.get(name, 0) + int(right.sum())
    return hits


def _throughput(url: str) -> float:
    """Rows per second under the load that `ensemblectl bench` makes."""
    bench = [str(ENSEMBLECTL), "bench", url, "--rows", str(IMAGES_A_REQUEST), "-o", "json"]
    run = subprocess.run(bench, stdout=subprocess.PIPE, check=True)
    return float(json.loads(run.stdout)["rowsPerSecond"])


def _say(what: str) -> None:
    Console(stderr=True, highlight=False).print(f"[bold blue]▶[/] {what}", soft_wrap=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=HERE / "build", help="what train.py wrote (default: build/, here)"
    )
    parser.add_argument("--svg", type=Path, help="also draw the table into this file")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # it has said itself what went wrong
