"""Trains five members if they are not there yet, serves them as one ensemble, and shows what it is worth.

The way is the one that a cluster takes: manifest, profiles, plan, RuntimeConfig, runtime. Ends with exit code 1 when
the ensemble is not the best of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from client import infer
from report import Findings, report
from rich.console import Console
from serving import ENSEMBLECTL, serving

HERE = Path(__file__).parent
OUTPUT = "probabilities"
IMAGES_A_REQUEST = 64
BENCH_SECONDS = 5


def main() -> int:
    arguments = _arguments()
    manifest: Path = arguments.models / "ensemble.yaml"
    if not manifest.exists():
        subprocess.run([sys.executable, HERE / "train.py", "--out", arguments.models], check=True)
    findings = find(manifest, arguments.models / "held-out.npz")
    console = Console(record=True)
    console.print(report(findings))
    if arguments.svg:
        console.save_svg(str(arguments.svg), title="make demo")
    return 0 if findings.ensemble_is_best else 1


def find(manifest: Path, held_out: Path) -> Findings:
    """Serve a manifest, ask it about the held-out images, load it, and stop it."""
    members = yaml.safe_load(manifest.read_text())["spec"]["members"]
    images = np.load(held_out)
    plan = _ensemblectl("plan", str(manifest))
    with serving(manifest) as address:
        right = {name: hits / len(images["digit"]) for name, hits in _hits(address, images).items()}
        url = f"http://{address[0]}:{address[1]}"
        bench = _ensemblectl("bench", url, "--duration", str(BENCH_SECONDS), "--rows", str(IMAGES_A_REQUEST))
    return Findings(
        images=len(images["digit"]),
        ensemble=right[OUTPUT],
        members={member["name"]: right[f"{OUTPUT}@{member['name']}"] for member in members},
        formats={member["name"]: member["model"]["format"] for member in members},
        plan=plan,
        rows_per_second=bench["rowsPerSecond"],
    )


def _hits(address: tuple[str, int], images: dict[str, Any]) -> dict[str, int]:
    """For each output, the ensemble's and the members': how many images it takes for the digit they show."""
    hits: dict[str, int] = {}
    for start in range(0, len(images["digit"]), IMAGES_A_REQUEST):
        rows = slice(start, start + IMAGES_A_REQUEST)
        for name, probabilities in infer(address, "digits", images["image"][rows]).items():
            right = probabilities.argmax(axis=-1) == images["digit"][rows]
            hits[name] = hits.get(name, 0) + int(right.sum())
    return hits


def _ensemblectl(*words: str) -> dict[str, Any]:
    """What a command tells a program; its progress goes to the terminal."""
    run = subprocess.run([ENSEMBLECTL, *words, "-o", "json"], stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(run.stdout)
    return document


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
